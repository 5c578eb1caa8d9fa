"""A guest's agent that answers as it likes: frames by hand on one end of a socket pair, the daemon's client on the other.

What a test does not list is answered as an agent at rest would: acts succeed, waits and reads are not answered yet.
"""

import asyncio
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final

from betterproto2 import Message

from kata_shimd import wire
from kata_shimd.errors import Code
from kata_shimd.ttrpc.envelope import Response, Status, decode_request, encode_response
from kata_shimd.ttrpc.frames import DATA, HEADER, MAX_DATA, REQUEST, RESPONSE
from kata_shimd.ttrpc.testing import RawPeer

#: The calls that wait for the container by nature.
WAITS: Final = frozenset({"WaitProcess", "ReadStdout", "ReadStderr", "GetOOMEvent"})


class Hostile:
    """`run` it as a task. ``calls`` counts what it was asked, by method."""

    def __init__(self, sock: socket.socket, answers: "Mapping[str, Answer]", otherwise: "Answer | None" = None) -> None:
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


Answer = Callable[[Hostile, int], Awaitable[None]]


def payload(data: bytes | Message) -> Answer:
    """A success with these bytes."""
    packed = encode_response(Response(None, data if isinstance(data, bytes) else wire.encode(data)))

    async def answer(guest: Hostile, stream: int) -> None:
        await guest.send((stream, RESPONSE, 0, packed))

    return answer


def refusal(code: int, text: str = "no") -> Answer:
    packed = encode_response(Response(Status(code, text, ()), b""))

    async def answer(guest: Hostile, stream: int) -> None:
        await guest.send((stream, RESPONSE, 0, packed))

    return answer


def raw(make: Callable[[int], bytes]) -> Answer:
    """Whatever bytes ``make`` gives for the stream's id."""

    async def answer(guest: Hostile, stream: int) -> None:
        await guest.send_bytes(make(stream))

    return answer


async def never(_guest: Hostile, _stream: int) -> None:
    return None


success: Final = payload(b"")


def late(seconds: float) -> Answer:
    """The right answer, when nobody waits for it any more."""

    async def answer(guest: Hostile, stream: int) -> None:
        await asyncio.sleep(seconds)
        await success(guest, stream)

    return answer


async def twice(guest: Hostile, stream: int) -> None:
    await success(guest, stream)
    await success(guest, stream)


def in_turn(answers: Iterable[Answer], then: Answer) -> Answer:
    """The first calls get these answers, all later ones ``then``."""
    waiting = list(answers)

    async def answer(guest: Hostile, stream: int) -> None:
        await (waiting.pop(0) if waiting else then)(guest, stream)

    return answer


def _frame(stream: int, type_: int, flags: int, data: bytes) -> bytes:
    return HEADER.pack(len(data), stream, type_, flags) + data


_OK: Final = encode_response(Response(None, b""))

#: Ways to answer any call at all, by name.
ATTACKS: Final[Mapping[str, Answer]] = {
    "never": never,
    "late": late(0.5),
    "twice": twice,
    "garbage for an envelope": raw(lambda stream: _frame(stream, RESPONSE, 0, b"\xff" * 40)),
    "garbage for a message": payload(b"\x0a\xff\xff"),
    "fields nobody knows": payload(b"\x98\x06\x01" * 50_000),
    "more fields than are taken": payload(b"\x98\x06\x01" * 100_000),
    "text of four megabytes": refusal(Code.INTERNAL, "x" * (MAX_DATA - 100)),
    "text that drives a terminal": refusal(Code.INTERNAL, "\x1b[2J\x07\u202e\n" * 100),
    "a code nobody knows": refusal(2**31 - 1),
    "not found": refusal(Code.NOT_FOUND),
    "a frame too large": raw(lambda stream: _frame(stream, RESPONSE, 0, bytes(MAX_DATA + 1))),
    "half a frame, then silence": raw(lambda stream: _frame(stream, RESPONSE, 0, bytes(1000))[:500]),
    "a header that promises, then silence": raw(lambda stream: HEADER.pack(MAX_DATA, stream, RESPONSE, 0)),
    "another's id": raw(lambda stream: _frame(stream + 2, RESPONSE, 0, _OK)),
    "an even id": raw(lambda stream: _frame(stream + 1, RESPONSE, 0, _OK)),
    "data for an answer": raw(lambda stream: _frame(stream, DATA, 0, b"x")),
    "a request for an answer": raw(lambda stream: _frame(stream, REQUEST, 0, b"")),
    "an unknown type": raw(lambda stream: _frame(stream, 77, 255, b"x")),
    "strays without end": raw(lambda _stream: _frame(9999, RESPONSE, 0, _OK) * 5000),
}
