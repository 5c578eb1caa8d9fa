"""What the integration tests, the demo and the benchmarks stand on.

Owns private surroundings for a containerd (`host`, `containerd`), clients of it (`ctr`, `terminal`, `events`), what it is given
to run (`image`), a look at what our pods left (`pods`, `leaks`) and the waiting between (`waiting`). Imports only the
standard library and public names of `kata_shimd`; pytest is imported by `report` and by ``conftest.py`` alone, because the
demo runs where no pytest is. Nothing here may touch the machine's own containerd, or a process it did not start.
"""
