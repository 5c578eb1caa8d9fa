"""Fuzz of the journal's reader and of what `kata-shimd why` makes of it: the story, its lines, the verdict.

    python -m integration.fuzz.journal_lines [--count 1000000] [--seed 1]

A journal holds what guests said and may be cut anywhere. Permitted: nothing. Also required: no line can drive a terminal.
"""

import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final

from integration.fuzz import mutate
from integration.fuzz.engine import Target, corpus, main, scratch
from kata_shimd import journal
from kata_shimd.debug import timeline
from kata_shimd.debug.escape import one_line
from kata_shimd.debug.story import tell
from kata_shimd.debug.verdict import judge


@cache
def _kept() -> list[bytes]:
    return corpus("journal")


@cache
def _events() -> list[Any]:
    return [json.loads(line) for line in _kept()[0].splitlines()]


def make(rng: random.Random) -> bytes:
    if rng.random() < 0.3:
        return mutate.data(rng, rng.choice(_kept()))
    events = _events()
    some = [events[0], *rng.sample(events[1:], rng.randrange(1, 8))]
    return "".join(json.dumps(event) + "\n" for event in mutate.tree(rng, some)).encode()


@contextmanager
def opened() -> Iterator[Callable[[Any], None]]:
    with scratch() as name:
        path = Path(name) / "pod.jsonl"

        def check(data: bytes) -> None:
            path.write_bytes(data)
            story = tell(journal.read(path), live=bool(len(data) % 2))
            for line in (*timeline.lines(story), one_line(judge(story).sentence)):
                assert line.isprintable(), line

        yield check


TARGET: Final = Target("journal_lines", (), make, opened)

if __name__ == "__main__":
    main(TARGET)
