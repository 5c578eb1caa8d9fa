"""``python -m integration.hostile.vm``: plays every attack and writes docs/hostile.md; exit code 1 unless all is as expected."""

import argparse
import re
import sys

from integration.chaos.__main__ import surroundings
from integration.chaos.stage import Stage
from integration.harness import leaks, process
from integration.hostile.vm import page
from integration.hostile.vm.attacks import ROWS, Row
from integration.hostile.vm.play import Result, play


def main() -> int:
    parser = argparse.ArgumentParser(description="what is seen when the agent of a running container turns hostile")
    parser.add_argument("--only", type=re.compile, help="attacks that this pattern is found in, as extent/name")
    arguments = parser.parse_args()
    process.become_subreaper()
    rows = [row for row in ROWS if not arguments.only or arguments.only.search(f"{row.extent}/{row.name}")]
    with surroundings() as (stage, scene):
        results = []
        for number, row in enumerate(rows):
            results.append(_play(stage, scene, row, f"hostile-{number}"))
            page.keep(results)  # each time, so that a run that is cut short has not been for nothing
    return 1 if any(result.complaints for result in results) else 0


def _play(stage: Stage, scene: leaks.Scene, row: Row, name: str) -> Result:
    """A play that breaks off is a result too: the others are still to be played."""
    try:
        result = play(stage, scene, row, name)
    except Exception as error:
        complaint = f"broke off: {type(error).__name__}: {error}"
        result = Result(row.name, row.extent, -1, "", "", 0, 0, 0.0, 0.0, (complaint,))
        stage.remove(name)
    sys.stdout.write(f"{row.extent}/{row.name}: {result.code} {result.rule} {result.seconds:.1f} s\n")
    sys.stdout.writelines(f"    {complaint}\n" for complaint in result.complaints)
    sys.stdout.flush()
    return result


if __name__ == "__main__":
    sys.exit(main())
