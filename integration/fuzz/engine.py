"""What every fuzz target shares: inputs made from a seed, exceptions that are permitted, counts, and the command line.

An input is made from ``seed/number`` alone, so a finding is repeated by its two numbers. A target refuses an input by one of its
permitted exceptions, or takes it; any other exception is a finding and stops the run with the input as a note. Both counts are
reported: a target that only ever refuses, or only ever takes, tests little.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

#: Every target, in the order of what reads the input: the wire, the guest, the client, the host.
TARGETS: Final = (
    "ttrpc_frames", "messages", "agent_replies", "handshake", "console_bytes", "qmp_lines", "oci_specs", "bootstrap",
    "config_toml", "launcher_stdin", "ledger_lines", "journal_lines", "undo_ledgers",
)  # fmt: skip
_CORPUS: Final = Path(__file__).parent / "corpus"
_IN_MEMORY: Final = Path("/dev/shm")
#: How much of a finding's input is shown.
_SHOWN: Final = 4000


@dataclass(frozen=True, slots=True)
class Target:
    """``make`` gives an input; ``opened`` is entered once a run and gives the check that takes each."""

    name: str
    permitted: tuple[type[Exception], ...]
    make: Callable[[random.Random], Any]
    opened: Callable[[], AbstractContextManager[Callable[[Any], None]]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run did: inputs taken, inputs refused, seconds."""

    taken: int
    refused: int
    seconds: float


def corpus(name: str) -> list[bytes]:
    """The kept inputs of a target, in the order of their names."""
    return [file.read_bytes() for file in sorted((_CORPUS / name).iterdir())]


def scratch() -> "tempfile.TemporaryDirectory[str]":
    """A directory in memory where there is one: a disk's file system is slow to write the same file again and again."""
    return tempfile.TemporaryDirectory(prefix="kf-", dir=_IN_MEMORY if _IN_MEMORY.is_dir() else None)


def run(target: Target, *, seed: int, count: int, first: int = 0, seconds: float = float("inf")) -> Outcome:
    """Feed ``count`` inputs from number ``first`` on, or as many as ``seconds`` allow.

    Raises what was not permitted, with the input as a note.
    """
    began, refused, number = time.monotonic(), 0, first
    with target.opened() as check:
        while number < first + count and time.monotonic() - began < seconds:
            data = target.make(random.Random(f"{seed}/{number}"))
            try:
                check(data)
            except target.permitted:
                refused += 1
            except BaseException as error:
                error.add_note(f"{target.name}: seed {seed}, input {number}: {data!r:.{_SHOWN}}")
                raise
            number += 1
    return Outcome(number - first - refused, refused, time.monotonic() - began)


def main(target: Target) -> None:
    """``python -m integration.fuzz.NAME --count N --seed S``"""
    parser = argparse.ArgumentParser(description=f"fuzz {target.name}")
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="the number of the first input, to go on after a finding")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long")
    parser.add_argument("--json", action="store_true", help="the outcome as one line of JSON")
    arguments = parser.parse_args()
    first, seconds = arguments.first, arguments.seconds
    done = run(target, seed=arguments.seed, count=arguments.count, first=first, seconds=seconds)
    sys.stdout.write(
        f"{json.dumps(asdict(done))}\n" if arguments.json else f"{_sentence(target, arguments.seed, done)}\n"
    )


def _sentence(target: Target, seed: int, done: Outcome) -> str:
    return (
        f"{target.name}: {done.taken + done.refused} inputs ({done.taken} taken, {done.refused} refused), "
        f"seed {seed}, {done.seconds:.0f} s: nothing found"
    )
