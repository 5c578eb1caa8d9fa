"""``python -m integration.keeper [KILLS] [STREAM_KIB]``: the long form of `test_random`, 1000 deaths and streams of 32 MiB.

``--keeper`` and ``--loop`` say under which keeper and on which event loop; of each pair there is a run of its own.
In parts; each one's counts are added to what there is. ``--keep`` keeps them in results.json and docs/keeper.md after every
part, and ``--resume`` goes on with what is kept. ``--minutes`` begins no further part after so long. Exit code 1 when there was a
complaint.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from integration.keeper import results
from integration.keeper.results import Run
from integration.keeper.setups import Keeper, Loop, Setup


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="integration.keeper", description="daemons killed at random moments under load"
    )
    parser.add_argument("kills", nargs="?", type=int, default=1000)
    parser.add_argument("stream_kib", nargs="?", type=int, default=32768)
    parser.add_argument("--keeper", choices=list(Keeper), default=Keeper.LAUNCHER, type=Keeper, help="(%(default)s)")
    parser.add_argument("--loop", choices=list(Loop), default=Loop.UVLOOP, type=Loop, help="(%(default)s)")
    parser.add_argument("--part", type=int, default=100, metavar="KILLS", help="deaths a part (%(default)s)")
    parser.add_argument("--minutes", type=float, default=None, help="begin no part after so long")
    parser.add_argument("--keep", action="store_true", help="write integration/keeper/results.json and docs/keeper.md")
    parser.add_argument("--resume", action="store_true", help="go on with the run that is kept")
    arguments = parser.parse_args()
    run = _begun(arguments)
    until = time.monotonic() + arguments.minutes * 60 if arguments.minutes is not None else None
    while run.kills < run.wanted and (until is None or time.monotonic() < until):
        run.join(_part(run, min(arguments.part, run.wanted - run.kills)))
        if arguments.keep:
            results.keep(run)
        print(f"{run.kills} of {run.wanted} deaths, {len(run.wrong)} complaints", flush=True)
    print(results.section(run))
    return 1 if run.wrong else 0


def _begun(arguments: argparse.Namespace) -> Run:
    new = Run(arguments.kills, arguments.stream_kib, setup=Setup(arguments.keeper, arguments.loop))
    kept = results.kept().get(new.setup)
    if not arguments.resume or kept is None:
        return new
    if kept.stream_kib != new.stream_kib:
        sys.exit(f"integration.keeper: the run that is kept has streams of {kept.stream_kib} KiB")
    kept.wanted = new.wanted
    return kept


def _part(run: Run, kills: int) -> Run:
    """One part, in a process of its own. One that has told nothing is itself a complaint."""
    with tempfile.TemporaryDirectory() as directory:
        result = Path(directory) / "result.json"
        told = {
            "KATA_SHIMD_KILLS": str(kills),
            "KATA_SHIMD_STREAM_KIB": str(run.stream_kib),
            "KATA_SHIMD_SEED": str(run.parts + 1),
            "KATA_SHIMD_RESULT": str(result),
        }
        # A part takes minutes, and is none the worse for it: no dump of its threads.
        argv = [sys.executable, "-m", "pytest", "-q", "-o", "faulthandler_timeout=0", run.setup.test]
        done = subprocess.run(argv, env={**os.environ, **told}, stdout=subprocess.PIPE, text=True, check=False)
        part = Run.read(result.read_text()) if result.exists() else Run(kills, run.stream_kib)
    part.wrong += [f"after the run: {line}" for line in done.stdout.splitlines() if line.startswith("ERROR ")]
    if done.returncode != 0 and not part.wrong:
        part.wrong.append(f"part {run.parts + 1} of the run: {done.stdout[-2000:]}")
    print("".join(f"{one}\n" for one in part.wrong), end="", flush=True)
    return part


if __name__ == "__main__":
    sys.exit(main())
