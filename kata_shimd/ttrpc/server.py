"""The serving end: accepts connections, names them, and runs the handlers of a table of services.

Owns every accepted socket. Handlers return a reply or raise ShimError; only `connection.ServerConnection` writes. Every
handler is a task of one TaskGroup (but for immediate ones, which need none). What must never happen: one peer slowing
another, or a call of one connection touching another's.
"""

import asyncio
import logging
import os
import socket
import struct
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import TracebackType
from typing import Final, NamedTuple, Self

from ..errors import ShimError, Unavailable
from .channel import FrameSink, FrameSource, Limits
from .connection import ServerConnection, SinkMaker, SourceMaker, Table
from .service import Boundary, DefaultBoundary, Service

log = logging.getLogger(__name__)

_UCRED: Final = struct.Struct("3i")
_BACKLOG: Final = 64
_ACCEPT_PAUSE: Final = 1.0  # seconds without accepting after a failure, as when the host has no descriptors left


class Peer(NamedTuple):
    """Who is at the other end of a unix socket, as the kernel has it."""

    pid: int
    uid: int
    gid: int


def peer_of(sock: socket.socket) -> Peer:
    """SO_PEERCRED of a connected unix socket."""
    return Peer(*_UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)))


def own_uids() -> frozenset[int]:
    """Root and ourselves: who may talk to us unless told otherwise."""
    return frozenset({0, os.geteuid()})


def _nothing(_name: str) -> None:
    return None


class Server:
    """Serves ``services`` on ``listener`` (which stays the caller's) and on sockets that are `adopt`ed.

    Either ``async with Server(…):``, which finishes what is under way when the block ends, or ``start(tg)`` inside someone's
    TaskGroup and ``await close()`` at the end. ``on_open(name)`` and ``on_lost(name)`` are called once per connection,
    ``on_accepting(trouble)`` when nobody can be let in, for want of descriptors say, and with an empty one when that is over.
    """

    def __init__(
        self,
        listener: socket.socket | None,
        services: Iterable[Service],
        *,
        boundary: Boundary = DefaultBoundary,
        limits: Limits | None = None,
        allowed_uids: frozenset[int] | None = None,
        first_name: int = 1,
        on_open: Callable[[str], None] = _nothing,
        on_lost: Callable[[str], None] = _nothing,
        on_accepting: Callable[[str], None] = _nothing,
        drain_budget: float = 10.0,
        outlived: bool = False,
        source: SourceMaker = FrameSource,
        sink: SinkMaker = FrameSink,
    ) -> None:
        self._listener = listener
        self._table: Table = {(s.name, name): method for s in services for name, method in s.methods.items()}
        self._boundary = boundary
        self._limits = limits or Limits()
        self._allowed = own_uids() if allowed_uids is None else allowed_uids
        self._next_name = first_name
        self._on_open, self._on_lost, self._on_accepting = on_open, on_lost, on_accepting
        #: Why connections cannot be accepted at present.
        self._refuses = ""
        self._drain_budget = drain_budget
        #: Connections are left as they are when everything fails: somebody else holds them too, and goes on.
        self._outlived = outlived
        self._source, self._sink = source, sink
        self._connections: dict[str, ServerConnection] = {}
        self._closing = False
        self._resume: asyncio.TimerHandle | None = None
        self._group: asyncio.TaskGroup | None = None
        self._own_group: asyncio.TaskGroup | None = None
        self._closed: asyncio.Event | None = None

    async def __aenter__(self) -> Self:
        self._own_group = asyncio.TaskGroup()
        self.start(await self._own_group.__aenter__())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        group, self._own_group = self._own_group, None
        assert group is not None
        cancelled = error if isinstance(error, asyncio.CancelledError) else None
        try:
            await self.close(self._drain_budget if error is None else 0)
        except asyncio.CancelledError as again:
            self._abort()
            cancelled = again
        # The block's own error is not the group's: it leaves as it is, after detached handlers have ended.
        await group.__aexit__(None if cancelled is None else type(cancelled), cancelled, None)

    def start(self, group: asyncio.TaskGroup) -> None:
        """Serve from now on. ``group`` gets a task per call and one that cleans up, so it ends only after `close`."""
        self._group = group
        self._closed = asyncio.Event()
        group.create_task(self._until_closed(), name="ttrpc server")
        if self._listener is not None:
            self._listener.setblocking(False)
        self._listen()

    @property
    def connections(self) -> tuple[str, ...]:
        """The names of the open connections, oldest first."""
        return tuple(self._connections)

    def adopt(
        self,
        sock: socket.socket,
        name: str | None = None,
        *,
        source: SourceMaker | None = None,
        sink: SinkMaker | None = None,
    ) -> str:
        """Serve a connected socket, which becomes ours; ``name`` is for one that had its name from an earlier server, ``source``
        and ``sink`` for one that is received and sent in a way of its own."""
        if self._group is None or self._closing:
            sock.close()
            raise Unavailable("adopt connection", name or "", "the server is not running")
        name = self._reserve(name)
        sock.setblocking(False)
        connection = ServerConnection(
            name,
            sock,
            self._table,
            self._group,
            self._boundary,
            self._limits,
            self._lost,
            source or self._source,
            sink or self._sink,
        )
        self._connections[name] = connection
        self._on_open(name)
        connection.start()
        return name

    async def close(self, budget: float | None = None) -> None:
        """Take nothing new, let what is under way finish within ``budget`` seconds, close. Detached handlers live on."""
        self._stop_listening()
        self._closing = True
        connections = list(self._connections.values())
        with suppress(TimeoutError):
            async with asyncio.timeout(self._drain_budget if budget is None else budget):
                for connection in connections:
                    await connection.finish()
        self._abort()

    def _reserve(self, name: str | None) -> str:
        """A name that no connection has had; or ``name``, after which all new names come."""
        number = self._next_name if name is None else int(name.removeprefix("c"))
        if name in self._connections:
            raise ValueError(f"connection {name} is open already")
        self._next_name = max(self._next_name, number + 1)
        return f"c{number}"

    async def _until_closed(self) -> None:
        assert self._closed is not None
        try:
            await self._closed.wait()
        except asyncio.CancelledError:
            if self._outlived:
                raise
            self._abort()
            raise
        self._abort()

    def _abort(self) -> None:
        self._stop_listening()
        self._closing = True
        for connection in list(self._connections.values()):
            connection.lose(Unavailable("serve", connection.name, "the server has stopped"))
        if self._closed is not None:
            self._closed.set()

    def _lost(self, connection: ServerConnection, error: ShimError) -> None:
        del self._connections[connection.name]
        log.debug("connection %s: %s", connection.name, error)
        self._on_lost(connection.name)

    # Accepting

    def _listen(self) -> None:
        self._resume = None
        if self._listener is not None and not self._closing:
            asyncio.get_running_loop().add_reader(self._listener.fileno(), self._accept)

    def _stop_listening(self) -> None:
        if self._resume is not None:
            self._resume.cancel()
            self._resume = None
        if self._listener is not None and self._group is not None and not self._closing:
            asyncio.get_running_loop().remove_reader(self._listener.fileno())

    def _accept(self) -> None:
        assert self._listener is not None
        for _ in range(_BACKLOG):
            try:
                sock, _ = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                self._accepts(error.strerror or str(error))
                self._pause(error)
                return
            self._accepts("")
            self._admit(sock)

    def _accepts(self, trouble: str) -> None:
        """Tell, once each, that nobody can be let in, and that it is over."""
        if trouble != self._refuses:
            self._refuses = trouble
            self._on_accepting(trouble)

    def _pause(self, error: OSError) -> None:
        """What could not be accepted keeps the listener readable: look away for a while."""
        log.warning("accept: %s; trying again in %g s", error.strerror, _ACCEPT_PAUSE)
        self._stop_listening()
        self._resume = asyncio.get_running_loop().call_later(_ACCEPT_PAUSE, self._listen)

    def _admit(self, sock: socket.socket) -> None:
        try:
            peer = peer_of(sock)
        except OSError as error:
            log.warning("accept: peer credentials: %s", error.strerror)
            sock.close()
            return
        if peer.uid not in self._allowed:
            log.warning("accept: refused process %d of uid %d", peer.pid, peer.uid)
            sock.close()
            return
        self.adopt(sock)
