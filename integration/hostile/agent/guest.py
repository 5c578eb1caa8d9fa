"""A guest's agent that answers as it likes: frames by hand on one end of a socket pair, the daemon's client on the other.

What a test does not list is answered as an agent at rest would: acts succeed, waits and reads are not answered yet.
"""

import asyncio
import random
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from betterproto2 import Message

from kata_shimd import wire
from kata_shimd.errors import Code
from kata_shimd.pod.values import LOST
from kata_shimd.ttrpc.envelope import Response, Status, decode_request, encode_response
from kata_shimd.ttrpc.frames import DATA, HEADER, MAX_DATA, REQUEST, RESPONSE
from kata_shimd.ttrpc.testing import RawPeer

#: The calls that wait for the container by nature.
WAITS: Final = frozenset({"WaitProcess", "ReadStdout", "ReadStderr", "GetOOMEvent"})


class Mouth(Protocol):
    """What an answer speaks through: a stand-in here, the channel of a real VM in `integration.hostile.vm`."""

    async def send(self, *frames: tuple[int, int, int, bytes]) -> None:
        """Frames as (stream, type, flags, data)."""

    async def send_bytes(self, data: bytes) -> None: ...


Answer = Callable[[Mouth, int], Awaitable[None]]


class Hostile:
    """`run` it as a task. ``calls`` counts what it was asked, by method."""

    def __init__(self, sock: socket.socket, answers: Mapping[str, Answer], otherwise: Answer | None = None) -> None:
        self.calls: Counter[str] = Counter()
        self._peer = RawPeer(sock)
        self._answers, self._otherwise = answers, otherwise
        self._turn = asyncio.Lock()  # a frame larger than the socket's buffer is sent in pieces

    async def run(self) -> None:
        """Answer until the connection ends; each call in a task of its own, so that one may wait."""
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    frame = await self._peer.frame()
                    method = decode_request(frame.data).method
                    self.calls[method] += 1
                    group.create_task(self._answer(method, frame.stream), name=f"answer {method}")
        except* (EOFError, OSError):
            pass
        finally:
            self._peer.sock.close()

    async def _answer(self, method: str, stream: int) -> None:
        await self._answers.get(method, self._otherwise or (never if method in WAITS else success))(self, stream)

    async def send(self, *frames: tuple[int, int, int, bytes]) -> None:
        async with self._turn:
            await self._peer.send(*frames)

    async def send_bytes(self, data: bytes) -> None:
        async with self._turn:
            await self._peer.send_bytes(data)

    def die(self) -> None:
        """As when QEMU ends: the channel breaks."""
        try:
            self._peer.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


def payload(data: bytes | Message) -> Answer:
    """A success with these bytes."""
    packed = encode_response(Response(None, data if isinstance(data, bytes) else wire.encode(data)))

    async def answer(guest: Mouth, stream: int) -> None:
        await guest.send((stream, RESPONSE, 0, packed))

    return answer


def refusal(code: int, text: str = "no") -> Answer:
    packed = encode_response(Response(Status(code, text, ()), b""))

    async def answer(guest: Mouth, stream: int) -> None:
        await guest.send((stream, RESPONSE, 0, packed))

    return answer


def raw(make: Callable[[int], bytes]) -> Answer:
    """Whatever bytes ``make`` gives for the stream's id."""

    async def answer(guest: Mouth, stream: int) -> None:
        await guest.send_bytes(make(stream))

    return answer


async def never(_guest: Mouth, _stream: int) -> None:
    return None


success: Final = payload(b"")


#: Seconds after which nobody waits for an answer any more: more than all verbs of a test together, at their deadlines.
LATE: Final = 8.0


def late(seconds: float) -> Answer:
    """The right answer, when nobody waits for it any more."""

    async def answer(guest: Mouth, stream: int) -> None:
        await asyncio.sleep(seconds)
        await success(guest, stream)

    return answer


def dripping(seconds: float) -> Answer:
    """The right answer in pieces of one byte, each so long after the last; what others say meanwhile gets between them."""

    async def answer(guest: Mouth, stream: int) -> None:
        for byte in _frame(stream, RESPONSE, 0, _OK):
            await guest.send_bytes(bytes([byte]))
            await asyncio.sleep(seconds)

    return answer


async def twice(guest: Mouth, stream: int) -> None:
    await success(guest, stream)
    await success(guest, stream)


def in_turn(answers: Iterable[Answer], then: Answer) -> Answer:
    """The first calls get these answers, all later ones ``then``."""
    waiting = list(answers)

    async def answer(guest: Mouth, stream: int) -> None:
        await (waiting.pop(0) if waiting else then)(guest, stream)

    return answer


def _frame(stream: int, type_: int, flags: int, data: bytes) -> bytes:
    return HEADER.pack(len(data), stream, type_, flags) + data


_OK: Final = encode_response(Response(None, b""))


def babble(seed: int) -> Answer:
    """Up to four frames for each call, every part of them random; often enough close to the right answer to be taken for it."""
    rng = random.Random(seed)

    def data() -> bytes:
        some = rng.randbytes(rng.randrange(60))
        return rng.choice((b"", some, encode_response(Response(None, some)), encode_response(Response(_STATUS, some))))

    def frame(stream: int) -> bytes:
        packed, type_ = data(), rng.choice((REQUEST, RESPONSE, RESPONSE, DATA, rng.randrange(256)))
        length = rng.choice((len(packed), len(packed), len(packed), rng.randrange(1 << 32)))
        asked = rng.choice((stream, stream, stream + rng.randrange(-4, 5), rng.randrange(1 << 32)))
        return HEADER.pack(length, max(0, asked), type_, rng.choice((0, 0, rng.randrange(256)))) + packed

    return raw(lambda stream: b"".join(frame(stream) for _ in range(rng.randrange(5))) or rng.randbytes(7))


_STATUS: Final = Status(Code.INTERNAL, "no", ())


@dataclass(frozen=True, slots=True)
class Attack:
    """A way to answer any call at all. ``exit``: what a container's client is told, 0 only where every answer is a true success."""

    answer: Answer
    exit: int = LOST


def attacks(too_late: float) -> Mapping[str, Attack]:
    """By name; in ``too_late`` seconds nobody waits for an answer any more."""
    return {
        "never": Attack(never),
        "late": Attack(late(too_late)),
        "a byte at a time": Attack(dripping(too_late / 4)),
        "twice": Attack(twice, exit=0),
        "garbage for an envelope": Attack(raw(lambda stream: _frame(stream, RESPONSE, 0, b"\xff" * 40))),
        "garbage for a message": Attack(payload(b"\x0a\xff\xff")),
        "fields nobody knows": Attack(payload(b"\x98\x06\x01" * 50_000), exit=0),
        "more fields than are taken": Attack(payload(b"\x98\x06\x01" * 100_000)),
        "text of four megabytes": Attack(refusal(Code.INTERNAL, "x" * (MAX_DATA - 100))),
        "text that drives a terminal": Attack(refusal(Code.INTERNAL, "\x1b[2J\x07\u202e\n" * 100)),
        "a code nobody knows": Attack(refusal(2**31 - 1)),
        "not found": Attack(refusal(Code.NOT_FOUND)),
        "a frame too large": Attack(raw(lambda stream: _frame(stream, RESPONSE, 0, bytes(MAX_DATA + 1)))),
        "half a frame, then silence": Attack(raw(lambda stream: _frame(stream, RESPONSE, 0, bytes(1000))[:500])),
        "a header that promises, then silence": Attack(raw(lambda stream: HEADER.pack(MAX_DATA, stream, RESPONSE, 0))),
        "another's id": Attack(raw(lambda stream: _frame(stream + 2, RESPONSE, 0, _OK))),
        "an even id": Attack(raw(lambda stream: _frame(stream + 1, RESPONSE, 0, _OK))),
        "data for an answer": Attack(raw(lambda stream: _frame(stream, DATA, 0, b"x"))),
        "a request for an answer": Attack(raw(lambda stream: _frame(stream, REQUEST, 0, b""))),
        "an unknown type": Attack(raw(lambda stream: _frame(stream, 77, 255, b"x"))),
        "strays without end": Attack(raw(lambda _stream: _frame(9999, RESPONSE, 0, _OK) * 5000)),
    }


ATTACKS: Final = attacks(LATE)
