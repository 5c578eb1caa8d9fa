"""What happens when something dies: every part of the path, at every moment of a container's life, on real virtual machines.

`matrix` is the table of (victim, moment, expectation), `moments` brings a container to a moment and holds it there, `victims`
kills, `play` joins them and judges, `page` writes docs/failures.md. Moments are held by programs and files of ours that the
path must wait for, and seen in ledgers and journals: nothing here sleeps and hopes.

    python -m integration.chaos --all      the whole matrix; writes docs/failures.md
    pytest integration/chaos               a short choice of it, the single failures, and the pains of users
"""
