"""Fuzz of protobuf off the wire: `wire.decode` of every message there is.

    python -m integration.fuzz.messages [--count 1000000] [--seed 1]

Inputs know the fields of the message they are for, and lie about some of them. Permitted: `InvalidArgument`. Also required: what
was decoded is encoded, and comes back the same.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, Final

from betterproto2 import Message

from integration.fuzz import mutate
from integration.fuzz.engine import Target, main
from kata_shimd import api, wire
from kata_shimd.api._generated.message_pool import default_message_pool
from kata_shimd.errors import InvalidArgument

_DEEPEST: Final = 3
_NUMBERS: Final = (0, 1, 2, 127, 255, 256, 2**31 - 1, 2**31, 2**32, 2**63, 2**64 - 1)
_TEXTS: Final = (b"", b"text", "é".encode(), b"\xff", b"/a/b", b"_unknown_fields", b"anon", b"usage", b"self", b"Read")
Input = tuple[type[Message], bytes]


@cache
def every_message() -> list[type[Message]]:
    """Every message class of `kata_shimd.api`, by name."""
    for module in iter_modules(api.__path__):
        if not module.name.startswith("_"):
            import_module(f"{api.__name__}.{module.name}")
    return [cls for _, cls in sorted(default_message_pool.url_to_type.items())]


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def delimited(data: bytes) -> bytes:
    return varint(len(data)) + data


def some_message(rng: random.Random, cls: type[Message], depth: int = 0) -> bytes:
    """Bytes that mostly are a message of that class: fields that it has, now and then of another wire type, or unknown ones."""
    fields = list(wire._table(cls).by_number.values())
    return b"".join(_field(rng, rng.choice(fields) if fields else None, depth) for _ in range(rng.randrange(6)))


def _field(rng: random.Random, field: "wire._Field | None", depth: int) -> bytes:
    if field is None or rng.random() < 0.05:
        return varint(rng.choice((9, 77, 2**29 - 1)) << 3 | 0) + varint(rng.choice(_NUMBERS))
    kind = field.wire if rng.random() < 0.95 else rng.randrange(8)
    return varint(field.number << 3 | kind) + _value(rng, field, kind, depth)


def _value(rng: random.Random, field: "wire._Field", kind: int, depth: int) -> bytes:
    if kind == 0:
        return varint(rng.choice(_NUMBERS))
    if kind in (1, 5):
        return rng.randbytes(8 if kind == 1 else 4)
    if field.message is not None and depth < _DEEPEST:
        return delimited(some_message(rng, field.message, depth + 1))
    if field.entry is not None and depth < _DEEPEST:
        return delimited(b"".join(_field(rng, half, depth + 1) for half in field.entry))
    return delimited(rng.choice(_TEXTS))


def make(rng: random.Random) -> Input:
    cls = rng.choice(every_message())
    return cls, mutate.data(rng, some_message(rng, cls))


def check(given: Input) -> None:
    cls, data = given
    message = wire.decode(cls, data)
    try:
        encoded = wire.encode(message)
        again = wire.encode(wire.decode(cls, encoded))
    except InvalidArgument as error:
        raise AssertionError("what was decoded cannot be encoded") from error
    assert again == encoded, "what was decoded does not come back"


@contextmanager
def opened() -> Iterator[Callable[[Any], None]]:
    yield check


TARGET: Final = Target("messages", (InvalidArgument,), make, opened)

if __name__ == "__main__":
    main(TARGET)
