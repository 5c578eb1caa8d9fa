"""What only shows after a while: many containers in one pod, many pods one after the other.

    python -m integration.soak --containers 200 --pods 50

`soak` makes them and measures, `page` makes the tables, `test_soak` is the short form.
"""
