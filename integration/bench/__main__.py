"""All benchmarks by one command, each row beside its peer: a table of what was measured, and one of aims.

    python -m integration.bench                       all rows
    python -m integration.bench start state           some
    python -m integration.bench --list                what there is
    python -m integration.bench --quick               the code of every row, once: no measurement
    python -m integration.bench --write               rewrite docs/benchmarks, too

Wants a machine on which `integration/setup` was run, and root. Nothing is asserted about time.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from integration.bench import coldstart, density, idle, inside, memory, network, pages, start, state, stdout, template
from integration.bench.results import Group, Options, Outcome, outcome
from integration.harness import process

GROUPS: Final[tuple[Group, ...]] = (
    start.GROUP,
    coldstart.GROUP,
    template.GROUP,
    inside.GROUP,
    state.GROUP,
    stdout.GROUP,
    density.GROUP,
    idle.GROUP,
    memory.GROUP,
    network.GROUP,
)


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m integration.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(group.name for group in GROUPS)}")
    parser.add_argument("--list", action="store_true", help="say what there is, and run nothing")
    parser.add_argument("--quick", action="store_true", help="one round of as little as there can be")
    parser.add_argument("--runs", type=int, default=11, help="rounds of each row")
    parser.add_argument("--write", action="store_true", help="rewrite the pages in docs/benchmarks")
    parser.add_argument("--prefix", type=Path, default=Path(os.environ.get("KATA_SHIMD_PREFIX", "/opt/kata-shimd")))
    guest = os.environ.get("KATA_SHIMD_GUEST", "/var/lib/kata-shimd/guest/current")
    parser.add_argument("--guest", type=Path, default=Path(guest))
    chosen = parser.parse_args(words)
    if unknown := set(chosen.rows) - {group.name for group in GROUPS}:
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    if chosen.quick and chosen.write:
        parser.error("--quick measures nothing that could be written")
    return chosen


def run(groups: list[Group], options: Options, *, write: bool) -> Iterator[tuple[Group, Outcome]]:
    """Each group's results; what is written is written at once, so that an interruption costs one group."""
    for group in groups:
        print(f"{group.name} …", file=sys.stderr, flush=True)
        result = outcome(group, options)
        if write:
            pages.write(GROUPS, {**pages.load(), group.name: result})
        yield group, result


def main() -> None:
    chosen = arguments()
    groups = [group for group in GROUPS if group.name in chosen.rows or not chosen.rows]
    if chosen.list:
        print("\n".join(f"{group.name:12}{group.title}" for group in groups))
        return
    start.with_run_in_memory()
    process.become_subreaper()
    options = Options(chosen.prefix, chosen.guest, 1 if chosen.quick else chosen.runs, chosen.quick)
    report(dict(run(groups, options, write=chosen.write)))


def report(outcomes: dict[Group, Outcome]) -> None:
    """One table of all rows, one of aims, and what has to stand beside them."""
    known = [(group, result.measured) for group, result in outcomes.items()]
    common = dict(next(iter(outcomes.values())).circumstances)
    common["load average"] = "; ".join(
        f"{g.name} {result.circumstances['load average']}" for g, result in outcomes.items()
    )
    common["took"] = "; ".join(f"{g.name} {result.circumstances['took']}" for g, result in outcomes.items())
    common["command"] = shlex.join([*pages.COMMAND, *sys.argv[1:]])
    print(pages.table(known), pages.verdicts(known), pages.facts(common), sep="\n\n")


if __name__ == "__main__":
    main()
