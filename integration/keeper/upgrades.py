"""``python -m integration.keeper.upgrades``: the long form of `test_earlier`.

Pods of several earlier commits, spread evenly over all that can hand a pod on, are moved to this commit, back, and here again,
under more load. ``--keep`` writes what came of it into docs/upgrade.md. Exit code 1 when there was a complaint.
"""

import argparse
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from integration.conftest import PREFIX
from integration.harness import process, versions
from integration.keeper import earlier
from integration.keeper.installation import Installation
from integration.keeper.moving import Journey, node, travel

PAGE: Final = Path(__file__).parents[2] / "docs/upgrade.md"
BEGIN: Final = "<!-- made by `python -m integration.keeper.upgrades --keep`; do not edit -->"
END: Final = "<!-- end -->"


@dataclass(frozen=True, slots=True)
class Result:
    """Of one commit."""

    commit: str
    journey: Journey
    load: float

    def row(self) -> str:
        seen, moves = self.journey.seen, self.journey.moves
        calls = ", ".join(f"{count} {what}" for what, count in seen.calls.items())
        pods, longest = sum(pods for pods, _ in moves), max((seconds for _, seconds in moves), default=0.0)
        figures = f"{len(moves)} | {pods} | {longest:.1f} | {calls} | {seen.longest('list'):.2f} | {self.load:.1f}"
        return f"| {self.commit} | {figures} | {len(seen.wrong)} |"


def main() -> int:
    parser = argparse.ArgumentParser(prog="integration.keeper.upgrades", description="pods of earlier commits, moved")
    parser.add_argument("--commits", type=int, default=5, help="of how many (%(default)s)")
    parser.add_argument("--stream-kib", type=int, default=2048, help="of a stream each way (%(default)s)")
    parser.add_argument("--keep", action="store_true", help="write docs/upgrade.md")
    arguments = parser.parse_args()
    process.become_subreaper()
    results = [_of(commit, arguments.stream_kib << 10) for commit in _spread(arguments.commits)]
    said = _section(results, arguments.stream_kib)
    print(said)
    if arguments.keep:
        head, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(f"{head}{BEGIN}\n\n{said}\n{END}{rest.partition(END)[2]}")
    return 1 if any(result.journey.seen.wrong for result in results) else 0


def _spread(count: int) -> list[str]:
    """The nearest, the farthest, and what is between."""
    try:
        earlier.previous()
    except earlier.NoHistory as reason:
        sys.exit(f"integration.keeper.upgrades: {reason}")
    found = list(earlier.commits())
    last = len(found) - 1
    return list(dict.fromkeys(found[round(last * step / max(1, count - 1))] for step in range(count)))


def _of(commit: str, size: int) -> Result:
    with tempfile.TemporaryDirectory(prefix="ku") as made:
        directory, ours = Path(made), Installation(PREFIX)
        old = earlier.install(commit, directory / "old")
        with node(directory) as on:
            journey = travel(on, "moving", [old, ours, old, ours], size=size)
    result = Result(earlier.described(commit), journey, os.getloadavg()[0])
    print(result.row(), flush=True)
    return result


def _section(results: list[Result], kib: int) -> str:
    said = [
        f"{versions.line()}. Streams of {kib} KiB each way.",
        "",
        "| From | Moves | Pods | The longest move, s | Calls | The longest listing, s | Load | Complaints |",
        "|---|---|---|---|---|---|---|---|",
        *(result.row() for result in results),
        "",
    ]
    wrong = [f"- {' '.join(one.split())}" for result in results for one in result.journey.seen.wrong]
    return "\n".join([*said, *(wrong or ["No complaint."]), ""])


if __name__ == "__main__":
    sys.exit(main())
