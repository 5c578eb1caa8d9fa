"""Fuzz of the ledger's reader in the daemon.

    python -m integration.fuzz.ledger_lines [--count 1000000] [--seed 1]

Permitted: nothing, for strange lines are passed over. `undo_ledgers` does the same to the launcher.
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
from kata_shimd import ledger


@cache
def kept() -> list[bytes]:
    return corpus("ledger")


@cache
def _lines() -> list[Any]:
    return [json.loads(line) for line in kept()[-1].splitlines()]


def make(rng: random.Random) -> bytes:
    """A ledger whose lines are as they should be, or not, or whose bytes are not."""
    if rng.random() < 0.3:
        return mutate.data(rng, rng.choice(kept()))
    lines = mutate.tree(rng, _lines())
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


@contextmanager
def opened() -> Iterator[Callable[[Any], None]]:
    with scratch() as name:
        pod_dir = Path(name)

        def check(data: bytes) -> None:
            (pod_dir / ledger.NAME).write_bytes(data)
            state = ledger.read(pod_dir)
            assert state.last >= max(state.live, default=0), "a number would be given twice"

        yield check


TARGET: Final = Target("ledger_lines", (), make, opened)

if __name__ == "__main__":
    main(TARGET)
