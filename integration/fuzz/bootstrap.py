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
from kata_shimd import assembly, wire
from kata_shimd.api import bootstrap as pb
from kata_shimd.api import runtime_options, wkt
from kata_shimd.errors import InvalidArgument

_TYPES: Final = (
    "runtimeoptions.v1.Options",
    "type.googleapis.com/runtimeoptions.v1.Options",
    "containerd.runc.v1.Options",
    "x",
    "",
)
_PATHS: Final = ("", "/etc/x.toml", "relative", "/a\0b", "\0", "/" + "x" * 5000, "/é\u202e", "/a/../b")


@cache
def _kept() -> list[bytes]:
    return corpus("bootstrap")


def make(rng: random.Random) -> bytes:
    """A kept one changed, a message of random fields, or options that are well packed and say something odd."""
    match rng.randrange(6):
        case 0:
            return some_message(rng, rng.choice((pb.BootstrapParams, wkt.Any)))
        case 1:
            packed = wkt.Any(type_url=rng.choice(_TYPES), value=_options(rng))
            extension = pb.Extension(value=packed)
            return wire.encode(packed if rng.random() < 0.5 else pb.BootstrapParams(extensions=[extension]))
        case _:
            return mutate.data(rng, rng.choice(_kept()))


def _options(rng: random.Random) -> bytes:
    path, body = rng.choice(_PATHS), rng.choice((b"", b"[shimd]", b"\xff\0"))
    return wire.encode(runtime_options.Options(config_path=path, config_body=body))


def check(data: bytes) -> None:
    source = assembly._options(data)
    assert source.config_path is None or "\0" not in str(source.config_path), "a path that no system call takes"


@contextmanager
def opened() -> Iterator[Callable[[Any], None]]:
    yield check


TARGET: Final = Target("bootstrap", (InvalidArgument,), make, opened)

if __name__ == "__main__":
    main(TARGET)
