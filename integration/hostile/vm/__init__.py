"""A real daemon on a real virtual machine, whose agent turns hostile while a container runs.

`channel` stands between the two and lets everything pass until it is told to attack, `attacks` is the table of what it says
then and what is to be seen, `play` plays a row and judges, `page` writes docs/hostile.md.

    python -m integration.hostile.vm     all of it; writes docs/hostile.md
    pytest integration/hostile/vm        a short choice of it
"""
