"""The channel between a real daemon and a real guest, with us in the middle: what either says passes, until we attack.

QEMU is begun by a program of ours (the configuration's `path`): it gives QEMU one end of a socket pair in place of the socket that
the daemon bound for the agent, hands us the other end and that socket, and becomes QEMU. So it is we who accept the daemon's
connection, and nothing of the product knows of it.
"""

import asyncio
import shutil
import socket
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from integration.hostile.agent.guest import Answer
from kata_shimd.ttrpc.envelope import decode_request
from kata_shimd.ttrpc.frames import HEADER, REQUEST, RESPONSE, Frame, pack
from kata_shimd.vm import dial

_PROGRAM: Final = """\
#!{python} -IS
import os, socket, sys
words = sys.argv[1:]
(at,) = (n for n, word in enumerate(words) if word.startswith("socket,id=agent,fd="))
bound = int(words[at].partition("fd=")[2].partition(",")[0])
ours, theirs = socket.socketpair()
with socket.socket(socket.AF_UNIX) as told:
    told.connect({socket!r})
    socket.send_fds(told, [b"x"], [bound, ours.fileno()])
os.close(bound)
theirs.set_inheritable(True)
words[at] = f"socket,id=agent,fd={{theirs.fileno()}}"
os.execv({qemu!r}, [{qemu!r}, *words])
"""
#: Greeting and answer begin alike, and as no frame does: it would be longer than any may be.
_GREETS: Final = dial.HELLO[: HEADER.size]
_HELLO: Final = len(dial.HELLO) + dial.SECRET_LENGTH + dial.SESSION_LENGTH
_ACK: Final = len(dial.ACK) + dial.SESSION_LENGTH
#: Seconds that the thread may take to do what it is told.
_SOON: Final = 10.0


@dataclass(frozen=True, slots=True)
class Plan:
    """Who is answered by us: calls of ``answers`` by name, and all others but the ``spared`` by ``otherwise``, if that is given."""

    answers: Mapping[str, Answer]
    otherwise: Answer | None = None
    spared: frozenset[str] = frozenset()

    def of(self, method: str) -> Answer | None:
        """None is for the guest to answer."""
        return self.answers.get(method) or (None if method in self.spared else self.otherwise)


class Channel:
    """The channel of one VM. ``program`` is for the configuration to name as QEMU; ``attacked`` counts our answers, by method."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="kh-", dir="/tmp")
        where = Path(self._directory.name)
        where.chmod(0o755)  # QEMU's user comes here
        self.program = where / "qemu"
        self.attacked: Counter[str] = Counter()
        self._listener = _listening(where / "told")
        qemu = shutil.which("qemu-system-x86_64") or "/usr/bin/qemu-system-x86_64"
        python = Path(sys.executable).resolve()
        self.program.write_text(_PROGRAM.format(python=python, socket=str(where / "told"), qemu=qemu))
        self.program.chmod(0o755)
        self._plan = Plan({})
        self._pending: dict[int, str] = {}
        self._daemon: asyncio.StreamWriter | None = None
        self._began: Future[asyncio.AbstractEventLoop] = Future()
        self._stop = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="channel")
        self._done = self._thread.submit(asyncio.run, self._live())
        self._loop = self._began.result(_SOON)

    def attack(self, plan: Plan) -> None:
        """From now on; calls that wait for the guest are answered by us too, and what the guest says to them is lost."""
        asyncio.run_coroutine_threadsafe(self._attack(plan), self._loop).result(_SOON)

    def close(self) -> None:
        """Whoever is still connected is let go.

        :raises ExceptionGroup: a failure of our own, for a channel that broke by our fault proves nothing
        """
        self._loop.call_soon_threadsafe(self._stop.set)
        try:
            self._done.result(_SOON)
        finally:
            self._thread.shutdown()
            self._listener.close()
            self._directory.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    # --- a mouth ---------------------------------------------------------------------------------------------------

    async def send(self, *frames: tuple[int, int, int, bytes]) -> None:
        await self.send_bytes(b"".join(pack(*frame) for frame in frames))

    async def send_bytes(self, data: bytes) -> None:
        """To the daemon; whole, whoever else speaks."""
        assert self._daemon is not None
        self._daemon.write(data)
        await self._daemon.drain()

    # --- in the thread -----------------------------------------------------------------------------------------------

    async def _live(self) -> None:
        self._began.set_result(asyncio.get_running_loop())
        async with asyncio.TaskGroup() as group:
            relay = group.create_task(self._relay(), name="relay")
            await self._stop.wait()
            relay.cancel()

    async def _relay(self) -> None:
        daemon, guest = await self._sockets()
        from_daemon, self._daemon = await asyncio.open_unix_connection(sock=daemon)
        from_guest, to_guest = await asyncio.open_unix_connection(sock=guest)
        try:
            async with asyncio.TaskGroup() as self._group:
                ways = {"ask": self._ask(from_daemon, to_guest), "answer": self._answer(from_guest)}
                tasks = [self._group.create_task(_until_gone(way), name=name) for name, way in ways.items()]
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                raise _Ended
        except* _Ended:
            pass
        finally:
            self._daemon.close()
            to_guest.close()

    async def _sockets(self) -> tuple[socket.socket, socket.socket]:
        """The daemon's connection, and the guest's end."""
        loop = asyncio.get_running_loop()
        told, _ = await loop.sock_accept(self._listener)
        with told:
            told.setblocking(True)
            _, fds, _, _ = socket.recv_fds(told, 1, 2)
        guest = socket.socket(fileno=fds[1])
        with socket.socket(fileno=fds[0]) as bound:
            bound.setblocking(False)
            daemon, _ = await loop.sock_accept(bound)
        return daemon, guest

    async def _ask(self, from_daemon: asyncio.StreamReader, to_guest: asyncio.StreamWriter) -> None:
        async for raw, frame in _pieces(from_daemon, _HELLO):
            if (
                frame is None
                or frame.type != REQUEST
                or not self._takes(frame.stream, decode_request(frame.data).method)
            ):
                to_guest.write(raw)
                await to_guest.drain()

    def _takes(self, stream: int, method: str) -> bool:
        """Whether a call is answered by us; else it is the guest's."""
        if (answer := self._plan.of(method)) is None:
            self._pending[stream] = method
            return False
        self.attacked[method] += 1
        self._group.create_task(_until_gone(answer(self, stream)), name=f"answer {method}")
        return True

    async def _answer(self, from_guest: asyncio.StreamReader) -> None:
        async for raw, frame in _pieces(from_guest, _ACK):
            if frame is None or frame.type != RESPONSE or self._pending.pop(frame.stream, None) is not None:
                await self.send_bytes(raw)

    async def _attack(self, plan: Plan) -> None:
        self._plan = plan
        waiting, self._pending = self._pending, {}
        for stream, method in waiting.items():
            self._takes(stream, method)


class _Ended(Exception):
    """One side has gone, and so both are to go, as when QEMU holds the socket."""


async def _until_gone(speech: Awaitable[None]) -> None:
    with suppress(ConnectionError):
        await speech


async def _pieces(reader: asyncio.StreamReader, greeting: int) -> AsyncIterator[tuple[bytes, Frame | None]]:
    """Greetings, of so many bytes, and frames, each with its bytes; until the stream ends."""
    with suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            head = await reader.readexactly(HEADER.size)
            if head == _GREETS:
                yield head + await reader.readexactly(greeting - len(head)), None
                continue
            length, stream, type_, flags = HEADER.unpack(head)
            data = await reader.readexactly(length)
            yield head + data, Frame(stream, type_, flags, data)


def _listening(path: Path) -> socket.socket:
    """For whoever runs as QEMU's user."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(str(path))
    path.chmod(0o666)
    server.listen(1)
    server.setblocking(False)
    return server
