"""``python -m integration.differential --sequences N --seed S``: compare our shim with runc's on random sequences.

Prints every unintended difference with its shortest sequence; exit status 1 when there is any.
"""

import argparse
import asyncio
import itertools
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from integration.differential.explore import Pair, Verdict, pair
from integration.differential.generate import generate
from integration.differential.shim import kata, runc
from integration.differential.steps import Sequence, cases
from integration.harness import process


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m integration.differential", description=__doc__)
    parser.add_argument("--sequences", type=int, default=100, help="how many seeds to try")
    parser.add_argument("--seed", type=int, default=1, help="the first seed; the others follow")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no further sequence after this time")
    parser.add_argument("--file", type=Path, action="append", help="replay this sequence instead of seeds")
    parser.add_argument("--cases", action="store_true", help="replay the kept sequences instead of seeds")
    parser.add_argument("--self-check", action="store_true", help="compare runc's shim with itself")
    parser.add_argument("--no-shrink", action="store_true", help="do not look for the shortest sequence")
    parser.add_argument("--keep", type=Path, help="write the sequences that differ into this directory")
    return parser.parse_args()


def sequences(options: argparse.Namespace) -> Iterator[Sequence]:
    if options.file:
        return (Sequence.from_json(file.read_text()) for file in options.file)
    if options.cases:
        return iter(cases())
    return map(generate, range(options.seed, options.seed + options.sequences))


class Report:
    """What was found, each kind of difference shown once."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._kinds: Counter[tuple[str, ...]] = Counter()
        self._rules: Counter[str] = Counter()
        self.done = self.differing = 0

    async def add(self, found: Pair, sequence: Sequence, verdict: Verdict) -> None:
        self.done += 1
        self._rules.update(verdict.used)
        if not verdict.differences:
            return
        self.differing += 1
        first = verdict.differences[0]
        self._kinds[first.kind] += 1
        if self._kinds[first.kind] > 1:
            return
        shortest = sequence if self._options.no_shrink else await found.shrink(sequence, first)
        print(f"DIFFERENCE\n{first}\n{shortest}", flush=True)
        if self._options.keep:
            name = sequence.name.replace(" ", "-")
            (self._options.keep / f"{name}.json").write_text(shortest.to_json())

    def print(self, seconds: float) -> None:
        print(f"{self.done} sequences in {seconds:.0f} s, {self.differing} with unintended differences")
        for kind, number in self._kinds.most_common():
            print(f"{number:6} × {' | '.join(filter(None, kind))}")
        for name, number in self._rules.most_common():
            print(f"{number:6} × intended: {name}")


async def run(options: argparse.Namespace, wanted: Iterable[Sequence]) -> Report:
    began = time.monotonic()
    report = Report(options)
    async with pair(runc(), runc() if options.self_check else kata()) as found:
        for sequence in itertools.takewhile(lambda _: time.monotonic() - began < options.seconds, wanted):
            await report.add(found, sequence, await found.judge(sequence))
    report.print(time.monotonic() - began)
    return report


def main() -> int:
    options = arguments()
    process.become_subreaper()
    try:
        report = asyncio.run(run(options, sequences(options)))
    finally:
        for left in process.descendants():
            left.kill()
        process.reap_orphans()
    return 1 if report.differing else 0


if __name__ == "__main__":
    sys.exit(main())
