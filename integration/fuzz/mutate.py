"""Changes to bytes and to JSON trees, all drawn from the random source that is given."""

import marshal
import random
from collections.abc import Callable, Iterator
from typing import Any, Final

#: Values that somebody somewhere did not expect.
ODD: Final[tuple[Any, ...]] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63) - 1, 1e308, 0.5, "", "\0", "/", "..", "../../x", "a" * 300,
    "\ud800", "é\u202e", "a:b:c", "::", [], {}, [[]], [{}], [None], {"": None}, {"type": 1}, [0], ["", 1],
)  # fmt: skip
#: Fragments that mean something to one parser or another.
TOKENS: Final = (
    b"\0",
    b"\n",
    b"\r\n",
    b'"',
    b"{",
    b"}",
    b"[",
    b"]",
    b"\\",
    b"\xff",
    b"\xc3",
    b"=",
    b"1e999",
    b"\x80" * 10,
)


def _overwrite(rng: random.Random, data: bytearray) -> None:
    data[rng.randrange(len(data))] = rng.randrange(256)


def _flip(rng: random.Random, data: bytearray) -> None:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _cut(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data))
    del data[at : at + rng.randrange(1, 32)]


def _truncate(rng: random.Random, data: bytearray) -> None:
    del data[rng.randrange(len(data)) :]


def _insert(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.choice(TOKENS) if rng.random() < 0.5 else rng.randbytes(rng.randrange(1, 8))


def _repeat(rng: random.Random, data: bytearray) -> None:
    start = rng.randrange(len(data))
    piece = data[start : start + rng.randrange(1, 32)]
    data[start:start] = piece * rng.choice([1, 2, 40])


_BYTE_CHANGES: Final[tuple[Callable[[random.Random, bytearray], None], ...]] = (
    _overwrite, _flip, _cut, _truncate, _insert, _repeat,
)  # fmt: skip


def data(rng: random.Random, kept: bytes) -> bytes:
    """``kept`` with up to four changes; now and then unchanged, now and then plain noise."""
    if rng.random() < 0.05:
        return rng.randbytes(rng.randrange(96))
    changed = bytearray(kept)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 4))):
        if changed:
            rng.choice(_BYTE_CHANGES)(rng, changed)
    return bytes(changed)


def pieces(rng: random.Random, whole: bytes, most: int = 4) -> list[bytes]:
    """The same bytes cut at up to ``most`` places."""
    cuts = sorted(rng.randrange(len(whole) + 1) for _ in range(rng.randrange(most + 1)))
    return [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]


def tree(rng: random.Random, kept: Any) -> Any:
    """A copy of a JSON tree with up to three places replaced, removed, doubled, renamed or swapped with another place."""
    changed = _copied(kept)
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        places = list(_places(changed))
        if places:
            _change(rng, places)
    return changed


def _change(rng: random.Random, places: list[tuple[Any, Any]]) -> None:
    holder, key = rng.choice(places)
    match rng.randrange(5):
        case 0:
            del holder[key]
        case 1:
            other, where = rng.choice(places)
            holder[key] = _copied(other[where])
        case 2 if isinstance(holder, list):
            holder.insert(key, _copied(holder[key]))
        case 3 if isinstance(holder, dict):
            holder[rng.choice((f"{key}x", str(key).upper(), "", "_unknown_fields", "self"))] = holder.pop(key)
        case _:
            holder[key] = _copied(rng.choice(ODD))


def _copied(value: Any) -> Any:
    """Ten times faster than `copy.deepcopy`, which is most of what making an input takes."""
    return marshal.loads(marshal.dumps(value))


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of a tree."""
    waiting = [value]
    while waiting:
        here = waiting.pop()
        for key, item in list(here.items()) if isinstance(here, dict) else list(enumerate(here)):
            yield here, key
            if isinstance(item, dict | list):
                waiting.append(item)
