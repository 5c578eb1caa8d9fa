"""Both ends of a connection in one process, and a peer that speaks frames by hand. For tests, of other packages too."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self

from .client import Client
from .frames import Frame, FrameDecoder, Oversize, pack
from .server import Server
from .service import Service


@asynccontextmanager
async def memory_pair(services: Iterable[Service], **options: Any) -> AsyncIterator[tuple[Client, Server]]:
    """A client and a server of ``services`` joined by a socket pair; ``options`` are the server's."""
    ours, theirs = socket.socketpair()
    async with Server(None, services, **options) as server:
        server.adopt(theirs)
        async with Client(ours) as client:
            yield client, server


class RawPeer:
    """The far end as bytes and frames: can send what no well-behaved peer would."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._decoder = FrameDecoder()
        self._frames: list[Frame | Oversize] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self.sock.close()

    async def send(self, *frames: tuple[int, int, int, bytes]) -> None:
        """Frames as (stream, type, flags, data), in one write."""
        await self.send_bytes(b"".join(pack(*frame) for frame in frames))

    async def send_bytes(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def frame(self) -> Frame:
        """The next frame. Raises EOFError at the end of the connection."""
        while not self._frames:
            data = await asyncio.get_running_loop().sock_recv(self.sock, 1 << 16)
            if not data:
                raise EOFError
            self._frames += self._decoder.feed(data)
        frame = self._frames.pop(0)
        assert isinstance(frame, Frame)
        return frame
