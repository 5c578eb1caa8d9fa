"""Fuzz of what containerd hands to a new pod's daemon: the runtime options, as they came on the launcher's stdin.

    python -m integration.fuzz.bootstrap [--count 1000000] [--seed 1]

Permitted: `InvalidArgument`. Configuration files that the options name are not read here; their contents are `config_toml`'s.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Final

from integration.fuzz import mutate
from integration.fuzz.engine import Target, corpus, main
from integration.fuzz.messages import some_message
from kata_shimd import assembly
from kata_shimd.api import bootstrap as pb
from kata_shimd.api import wkt
from kata_shimd.errors import InvalidArgument


@cache
def _kept() -> list[bytes]:
    return corpus("bootstrap")


def make(rng: random.Random) -> bytes:
    if rng.random() < 0.3:
        return some_message(rng, rng.choice((pb.BootstrapParams, wkt.Any)))
    return mutate.data(rng, rng.choice(_kept()))


def check(data: bytes) -> None:
    source = assembly._options(data)
    assert source.config_path is None or "\0" not in str(source.config_path), "a path that no system call takes"


@contextmanager
def opened() -> Iterator[Callable[[Any], None]]:
    yield check


TARGET: Final = Target("bootstrap", (InvalidArgument,), make, opened)

if __name__ == "__main__":
    main(TARGET)
