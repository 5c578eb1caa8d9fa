"""Fuzz of everything that reads a ttrpc peer's bytes: frames, envelopes, the protocol in both roles.

    python -m integration.fuzz.ttrpc_frames [--count 1000000] [--seed 1]

Inputs are sequences of valid frames, mutated, and plain noise, fed in random pieces. Permitted exceptions: none from
`Connection.receive`; `Malformed` alone from the two decoders, and an input that neither takes is a refused one. Also required:
the events do not depend on how the bytes are split, and what a connection remembers stays bounded.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from integration.fuzz import mutate
from integration.fuzz.engine import Target, main
from kata_shimd.ttrpc.envelope import (
    Detail,
    Malformed,
    Request,
    Response,
    Status,
    decode_request,
    decode_response,
    encode_request,
    encode_response,
)
from kata_shimd.ttrpc.frames import HEADER, pack
from kata_shimd.ttrpc.protocol import MAX_LINGERING, Connection, Kind, Role

MAX_DATA = 256
MAX_STREAMS = 8

PAYLOADS = [
    b"",
    b"\xff",
    encode_request(Request("a.B", "C", b"payload", 5, {"key": ("a", "b")})),
    encode_request(Request("", "", b"x" * 200, -1)),
    encode_response(Response(None, b"payload")),
    encode_response(Response(Status(5, "text", (Detail("type", b"value"),)), b"p")),
    b"\x0a\x05ab",
    bytes(MAX_DATA + 1),
]
#: Whose end reads, what it reads, and the same in pieces.
Input = tuple[Role, bytes, list[bytes]]


def some_frame(rng: random.Random) -> bytes:
    data = rng.choice(PAYLOADS)
    return pack(rng.choice([0, 1, 1, 3, 5, 7, 2, 2**32 - 1]), rng.choice([1, 1, 2, 3, 3, 0, 9]), rng.randrange(8), data)


def overwrite(rng: random.Random, data: bytearray) -> None:
    data[rng.randrange(len(data))] = rng.randrange(256)


def flip(rng: random.Random, data: bytearray) -> None:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def cut(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data))
    del data[at : at + rng.randrange(1, 16)]


def insert(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.randbytes(rng.randrange(1, 8))


def huge_length(rng: random.Random, data: bytearray) -> None:
    data += HEADER.pack(rng.choice([MAX_DATA + 1, 2**31, 2**32 - 1]), 1, 1, 0)


MUTATIONS: list[Callable[[random.Random, bytearray], None]] = [overwrite, flip, cut, insert, huge_length]


def some_input(rng: random.Random) -> bytes:
    if rng.random() < 0.1:
        return rng.randbytes(rng.randrange(64))
    data = bytearray(b"".join(some_frame(rng) for _ in range(rng.randrange(1, 6))))
    for _ in range(rng.choice([0, 1, 1, 2, 4])):
        if data:
            rng.choice(MUTATIONS)(rng, data)
    return bytes(data)


def make(rng: random.Random) -> Input:
    data = some_input(rng)
    return rng.choice((Role.CLIENT, Role.SERVER)), data, mutate.pieces(rng, data)


def connection(role: Role) -> Connection:
    """With streams under way, so that a client's table is reached as well."""
    made = Connection(role, max_data=MAX_DATA, max_streams=MAX_STREAMS)
    if role is Role.CLIENT:
        for kind in (Kind.CALL, Kind.OPEN, Kind.ASK, Kind.OPEN):
            made.send_request("a.B", "C", kind=kind)
        made.forget(7)
    return made


def check_connection(role: Role, data: bytes, pieces: list[bytes]) -> None:
    whole, split = connection(role), connection(role)
    expected = whole.receive(data)
    got = [event for piece in pieces for event in split.receive(piece)]
    assert got == expected, "events depend on how the bytes were split"
    assert split.position == whole.position, "so does the position"
    assert whole.live <= MAX_STREAMS, "too many streams"
    assert len(whole._lingering) <= MAX_LINGERING, "too many streams remembered"
    assert whole.receive_eof() == split.receive_eof(), "so does the end"


def check_decoders(data: bytes) -> None:
    """Raises `Malformed` when neither takes it."""
    refused: list[Malformed] = []
    for decode, encode in ((decode_request, encode_request), (decode_response, encode_response)):
        try:
            message = decode(data)
        except Malformed as error:
            refused.append(error)
            continue
        assert decode(encode(message)) == message, "what was decoded does not come back"  # type: ignore[operator]
    if len(refused) == 2:
        raise refused[0]


def check(given: Input) -> None:
    role, data, pieces = given
    check_connection(role, data, pieces)
    check_decoders(data[HEADER.size :])


@contextmanager
def opened() -> Iterator[Callable[[Any], None]]:
    yield check


TARGET: Final = Target("ttrpc_frames", (Malformed,), make, opened)

if __name__ == "__main__":
    main(TARGET)
