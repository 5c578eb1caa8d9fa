"""``python -m integration.fuzz [--count 1000000] [NAME…]``: the long form, every target or those named.

A target is a process of its own, so that what one finds ends no other. With --keep the outcomes
take the place of the last ones and docs/fuzzing.md is written. Exit code 1 when anything was found.
"""

import argparse
import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed

from integration.fuzz import engine, page, results
from integration.fuzz.results import Result


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m integration.fuzz", description="fuzz every target, or those named")
    parser.add_argument("targets", nargs="*", metavar="NAME", help=f"of {', '.join(engine.TARGETS)}")
    parser.add_argument("--count", type=int, default=results.WANTED, help="inputs for each (%(default)s)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="no longer than so for each")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="the number of the first input, to go on after a finding")
    parser.add_argument("--jobs", type=int, default=2, help="targets at once (%(default)s)")
    parser.add_argument("--keep", action="store_true", help="keep the outcomes, write docs/fuzzing.md")
    arguments = parser.parse_args()
    if unknown := set(arguments.targets) - set(engine.TARGETS):
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    found = False
    with ThreadPoolExecutor(arguments.jobs) as pool:
        running = [pool.submit(_run, name, arguments) for name in arguments.targets or engine.TARGETS]
        for done in as_completed(running):
            result = done.result()
            found |= bool(result.finding)
            sys.stdout.write(page.row(result) + "\n")
            sys.stdout.flush()
            if arguments.keep:
                results.keep(result)
                page.PATH.write_text(page.page(results.kept()))
    return 1 if found else 0


def _run(name: str, arguments: argparse.Namespace) -> Result:
    words = (
        "--count",
        str(arguments.count),
        "--seconds",
        str(arguments.seconds),
        "--seed",
        str(arguments.seed),
        "--first",
        str(arguments.first),
        "--json",
    )
    argv = [sys.executable, "-m", f"integration.fuzz.{name}", *words]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return Result.of(name, arguments.seed, engine.Outcome(**json.loads(done.stdout)))
    sys.stderr.write(done.stderr)
    return Result.of(name, arguments.seed, engine.Outcome(0, 0, 0.0), finding=_finding(done.stderr))


def _finding(said: str) -> str:
    """The exception and the numbers that repeat it, from a traceback whose last line is the engine's note."""
    lines = [line for line in said.splitlines() if line and not line.startswith(" ")]
    if len(lines) < 2:
        return "it died without a word"
    numbers = re.search(r"seed \d+, input \d+", lines[-1])
    words = lines[-2] if numbers else lines[-1]
    return f"{words[:100]} ({numbers[0]})".replace("|", "/") if numbers else words[:100].replace("|", "/")


if __name__ == "__main__":
    sys.exit(main())
