"""Fuzz of the configuration: a body of options and the sandbox's annotations.

    python -m integration.fuzz.config_toml [--count 1000000] [--seed 1]

Permitted: `InvalidArgument`, which lists what is wrong.
"""

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, Final

from integration.fuzz import mutate
from integration.fuzz.engine import Target, corpus, main
from kata_shimd.config import load
from kata_shimd.config.keys import BY_ANNOTATION
from kata_shimd.errors import InvalidArgument

_HYPERVISOR: Final = "io.katacontainers.config.hypervisor."
_NAMES: Final = ("default_vcpus", "default_memory", "kernel_params", "path", "", "x", "enable_annotations")
_KNOWN: Final = tuple(sorted(BY_ANNOTATION))
_VALUES: Final = ("", "1", "-1", "1e9", "99999999999999999999", "true", "\0", "a b=c", "/bin/sh", "\ud800", "é" * 200)
#: Without it few annotations come as far as their values.
_EVERY_ANNOTATION: Final = b'enable_annotations = [".*"]\n'
Input = tuple[bytes, Mapping[str, str]]


@cache
def _kept() -> list[bytes]:
    return corpus("toml")


def make(rng: random.Random) -> Input:
    """Small pieces of the kept files, for most of a whole one is dealt with like the next."""
    lines = rng.choice(_kept()).splitlines(keepends=True)
    start = rng.randrange(len(lines))
    tables = [line for line in lines[: start + 1] if line.startswith(b"[")][-1:]
    enabled = [_EVERY_ANNOTATION] if tables == [b"[hypervisor.qemu]\n"] and rng.random() < 0.5 else []
    body = b"".join((*tables, *enabled, *lines[start : start + rng.randrange(1, 12)]))
    notes = {_name(rng): rng.choice(_VALUES) for _ in range(rng.choice((0, 0, 0, 1, 2)))}
    return mutate.data(rng, body) if rng.random() < 0.8 else body, notes


def _name(rng: random.Random) -> str:
    return _HYPERVISOR + rng.choice(_NAMES) if rng.random() < 0.3 else rng.choice(_KNOWN)


def check(given: Input) -> None:
    body, notes = given
    load(None, body, None, notes, search=())


@contextmanager
def opened() -> Iterator[Callable[[Any], None]]:
    yield check


TARGET: Final = Target("config_toml", (InvalidArgument,), make, opened)

if __name__ == "__main__":
    main(TARGET)
