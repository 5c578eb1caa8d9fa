"""``python -m integration.keeper [KILLS] [STREAM_KIB]``: the long form of `test_random`, 1000 deaths and streams of 32 MiB."""

import os
import sys

import pytest

if __name__ == "__main__":
    kills, kib = (*sys.argv[1:3], *("1000", "32768")[len(sys.argv[1:3]) :])
    os.environ |= {"KATA_SHIMD_KILLS": kills, "KATA_SHIMD_STREAM_KIB": kib}
    sys.exit(pytest.main(["-q", "-s", "integration/keeper/test_random.py"]))
