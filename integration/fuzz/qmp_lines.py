"""Fuzz of QMP: a monitor whose QEMU says anything, at the greeting, at the negotiation, for an answer, or as its last words.

    python -m integration.fuzz.qmp_lines [--count 1000000] [--seed 1]

Permitted: `VmFailed`. `qemu.qmp` raises more kinds of its own (QMPError and below, OSError, EOFError, AssertionError); none of
them may pass our monitor. Neither may `DeadlineExceeded`, for whatever else is said, a proper answer or QEMU's end follows. What
breaks no session is followed by the next input in the same one. Also required: what is not an answer to the command is not taken
for it.
"""

import asyncio
import json
import logging
import random
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import Enum, auto
from functools import cache
from typing import Any, Final
from unittest.mock import patch

from qemu.qmp import Runstate, protocol, qmp_client

from integration.fuzz import mutate
from integration.fuzz.engine import Target, corpus, main
from kata_shimd.errors import VmFailed
from kata_shimd.vm.monitor import EVENTS, Monitor

#: Seconds, of which a busy machine may take some; only a hang comes so far.
_DEADLINE: Final = 60.0
#: A session that nothing breaks is used for so many inputs.
_EACH: Final = 256
_ID: Final = b"__qmp#00001"


class Part(Enum):
    """Where in a session QEMU says it; it is gone after all but an answer."""

    GREETING = auto()
    NEGOTIATION = auto()
    ANSWER = auto()
    LAST_WORDS = auto()


Input = tuple[Part, bytes]
#: Most are answers: there is little to get wrong before them, and they leave the session as it is.
_PARTS: Final = (Part.GREETING, Part.NEGOTIATION, Part.LAST_WORDS, *(Part.ANSWER,) * 29)


@cache
def _lines() -> list[bytes]:
    return corpus("qmp")[0].splitlines(keepends=True)


@cache
def _trees() -> list[Any]:
    return [json.loads(line) for line in _lines()]


def make(rng: random.Random) -> Input:
    """The answers in it have the id of the command that waits for one, if they are left as they are."""
    match part := rng.choice(_PARTS):
        case Part.GREETING:
            return part, _said(rng, 0)
        case Part.NEGOTIATION:
            return part, _said(rng, 1)
        case _:
            return part, b"".join(_said(rng, rng.randrange(2, len(_lines()))) for _ in range(rng.choice((1, 1, 2, 4))))


def _said(rng: random.Random, number: int) -> bytes:
    """A line of the corpus changed. One that is no JSON breaks the session, so there are fewer of these."""
    if rng.random() < 0.08:
        return mutate.data(rng, _lines()[number])
    return json.dumps(mutate.tree(rng, _trees()[number])).encode() + b"\n"


class _Session:
    """A negotiated monitor on a socket pair, with QEMU's end of it."""

    @classmethod
    async def begun(cls) -> "_Session":
        ours, guest = _pair()
        guest.sendall(b"".join(_lines()[:2]))
        return cls(await Monitor.over(ours, "qmp", _on_event, timeout=_DEADLINE), guest)

    def __init__(self, monitor: Monitor, guest: socket.socket) -> None:
        self._monitor, self._guest, self._asked = monitor, guest, 0

    @property
    def lives(self) -> bool:
        return self._monitor._client.runstate is Runstate.RUNNING and self._asked < _EACH

    async def answer(self, said: bytes) -> None:
        """What is said may come before the question: the library numbers its commands, so anybody knows the next one's id."""
        with suppress(BlockingIOError):
            self._guest.recv(65536)
        data, asked = self._numbered(said + _lines()[4]), self._numbered(_ID)
        self._guest.sendall(data)
        status = await self._status()
        assert status == "running" or data.count(asked) > 1, "an answer to somebody else was taken"

    async def last_words(self, said: bytes) -> None:
        """Say it when something was asked, and be gone."""
        async with asyncio.TaskGroup() as group:
            asking = group.create_task(_refusal(self._status()))
            await asyncio.get_running_loop().sock_recv(self._guest, 65536)
            self._guest.sendall(self._numbered(said))
            self._guest.close()
        if refusal := asking.result():
            raise refusal

    async def end(self) -> None:
        await self._monitor.close()
        self._guest.close()

    def _numbered(self, said: bytes) -> bytes:
        return said.replace(_ID, b"__qmp#%05d" % self._asked)

    async def _status(self) -> str:
        try:
            return await self._monitor.status()
        finally:
            self._asked += 1


class _Fuzzed:
    """One session after the other."""

    def __init__(self) -> None:
        self._session: _Session | None = None

    async def check(self, given: Input) -> None:
        part, said = given
        match part:
            case Part.GREETING:
                await _meet(said, b"")
            case Part.NEGOTIATION:
                await _meet(_lines()[0], said)
            case _:
                await self._say(part, said)

    async def _say(self, part: Part, said: bytes) -> None:
        session = self._session = self._session or await _Session.begun()
        try:
            await (session.answer(said) if part is Part.ANSWER else session.last_words(said))
        finally:
            if part is Part.LAST_WORDS or not session.lives:
                await self.end()

    async def end(self) -> None:
        if self._session is not None:
            await self._session.end()
            self._session = None


async def _meet(greeting: bytes, negotiated: bytes) -> None:
    """A session whose beginning is wrong. QEMU answers when it was asked, and is gone before what is empty."""
    ours, guest = _pair()
    async with asyncio.TaskGroup() as group:
        talking = group.create_task(_refusal(_connect(ours)))
        with suppress(OSError):
            guest.sendall(greeting)
            if negotiated and await asyncio.get_running_loop().sock_recv(guest, 65536):
                guest.sendall(negotiated)
        guest.close()
    if refusal := talking.result():
        raise refusal


async def _connect(ours: socket.socket) -> None:
    monitor = await Monitor.over(ours, "qmp", _on_event, timeout=_DEADLINE)
    try:
        await monitor.status()
    finally:
        await monitor.close()


async def _refusal(talking: Any) -> VmFailed | None:
    """It as a value: it must not cancel QEMU's end."""
    try:
        await talking
    except VmFailed as error:
        return error
    return None


def _pair() -> tuple[socket.socket, socket.socket]:
    ours, guest = socket.socketpair()
    ours.setblocking(False)
    guest.setblocking(False)
    return ours, guest


def _on_event(name: str, _data: object) -> None:
    assert name in EVENTS, f"an event that nobody wants: {name}"


@contextmanager
def opened() -> Iterator[Callable[[Any], None]]:
    with _library_is_silent(), asyncio.Runner() as runner:
        loop, fuzzed = runner.get_loop(), _Fuzzed()
        loop.set_exception_handler(_left_over)
        try:
            yield lambda given: loop.run_until_complete(fuzzed.check(given))
        finally:
            runner.run(fuzzed.end())


@contextmanager
def _library_is_silent() -> Iterator[None]:
    """It formats a traceback for each line it does not like, whether its log wants that or not: most of the time there is."""
    log = logging.getLogger("qemu.qmp")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with patch.object(protocol, "pretty_traceback", str), patch.object(qmp_client, "pretty_traceback", str):
            yield
    finally:
        log.setLevel(level)


def _left_over(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What nobody waited for is a finding too."""
    raise AssertionError(f"left behind: {context}")


TARGET: Final = Target("qmp_lines", (VmFailed,), make, opened)

if __name__ == "__main__":
    main(TARGET)
