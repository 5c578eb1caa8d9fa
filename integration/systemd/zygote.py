"""A zygote for the stage: what it forks has a machine that is not one.

``zygote.py RUN_DIR PYTHON``: where it listens, and the interpreter that launchers of the stage name.
"""

import sys
from pathlib import Path

from integration.keeper.verbs.standin import stand_in
from kata_shimd import zygote
from kata_shimd.cli.zygote import _say_ready

if __name__ == "__main__":
    run_dir, python = sys.argv[1:]
    sys.executable = python
    stand_in()
    serving = zygote.Zygote(Path(run_dir), zygote.warm())
    _say_ready()
    serving.serve()
