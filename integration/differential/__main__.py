"""``python -m integration.differential --sequences N --seed S``: compare our shim with runc's on random sequences.

Prints every unintended difference with its shortest sequence, which rules explained the others, and which explained none;
exit status 1 when there is any unintended difference.
"""

import argparse
import asyncio
import itertools
import sys
import time
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Words
from pathlib import Path

from integration.differential import page
from integration.differential.explore import Pair, Verdict, pair
from integration.differential.generate import generate
from integration.differential.report import Incomplete, Report, write
from integration.differential.shim import Kind, kata, runc
from integration.differential.steps import Sequence, cases
from integration.harness import process, revision


def arguments(words: Words[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m integration.differential", description=__doc__)
    parser.add_argument("--sequences", type=int, default=100, help="how many seeds to try")
    parser.add_argument("--seed", type=int, default=1, help="the first seed; the others follow")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no further sequence after this time")
    parser.add_argument("--file", type=Path, action="append", help="replay this sequence instead of seeds")
    parser.add_argument("--cases", action="store_true", help="replay the kept sequences before the seeds")
    parser.add_argument("--self-check", action="store_true", help="compare runc's shim with itself")
    parser.add_argument("--no-shrink", action="store_true", help="do not look for the shortest sequence")
    parser.add_argument("--keep", type=Path, help="write the sequences that differ into this directory")
    parser.add_argument("--situations", action="store_true", help="print every situation in which a rule held")
    parser.add_argument("--record", action="store_true", help="put the result on record, and write docs/differences.md")
    options = parser.parse_args(words)
    if options.record and (options.file or options.self_check or not options.cases):
        parser.error("--record is of a run with --cases, and with neither --file nor --self-check")
    return options


def sequences(options: argparse.Namespace) -> Iterator[Sequence]:
    if options.file:
        return (Sequence.from_json(file.read_text()) for file in options.file)
    seeds = map(generate, range(options.seed, options.seed + options.sequences))
    return itertools.chain(cases() if options.cases else (), seeds)


async def show(found: Pair, sequence: Sequence, verdict: Verdict, options: argparse.Namespace) -> None:
    """The first difference of a kind, with the shortest sequence that shows it."""
    first = verdict.differences[0]
    shortest = sequence if options.no_shrink else await found.shrink(sequence, first)
    print(f"DIFFERENCE\n{first}\n{shortest}", flush=True)
    if options.keep:
        name = sequence.name.replace(" ", "-")
        (options.keep / f"{name}.json").write_text(shortest.to_json())


async def run(options: argparse.Namespace, other: Kind, wanted: Iterable[Sequence]) -> Report:
    began = time.monotonic()
    revision.revision()  # what is run, and not what has become of it at the end
    report = Report(other)
    async with pair(runc(), other) as found:
        for sequence in itertools.takewhile(lambda _: time.monotonic() - began < options.seconds, wanted):
            verdict = await found.judge(sequence)
            if report.add(sequence, verdict):
                await show(found, sequence, verdict, options)
    seconds = time.monotonic() - began
    print("\n".join(report.lines(situations=options.situations)))
    print(f"in {seconds:.0f} s")
    if options.record:
        write(report.record(f"seed {options.seed}", seconds))
        page.PATH.write_text(page.page())
    return report


def main() -> int:
    options = arguments()
    process.become_subreaper()
    try:
        report = asyncio.run(run(options, runc() if options.self_check else kata(), sequences(options)))
    except Incomplete as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        for left in process.descendants():
            left.kill()
        process.reap_orphans()
    return 1 if report.differing else 0


if __name__ == "__main__":
    sys.exit(main())
