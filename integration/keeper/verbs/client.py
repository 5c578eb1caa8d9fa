"""containerd's part on one connection."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from betterproto2 import Message

from integration.keeper.verbs.stage import Stage
from kata_shimd import wire
from kata_shimd.api import wkt
from kata_shimd.ttrpc.client import Client

PATIENCE: Final = 60.0
SERVICE: Final = "containerd.task.v2.Task"


class Caller:
    """containerd's part."""

    def __init__(self, client: Client, stage: Stage, k: int) -> None:
        self.client, self.stage, self.k = client, stage, k

    async def ask(self, method: str, request: Message, reply: type[Message], *, armed: bool = True) -> Message:
        if armed:
            self.stage.arm(self.k)
        async with asyncio.timeout(PATIENCE):
            return wire.decode(reply, await self.client.call(SERVICE, method, wire.encode(request)))

    async def do(self, method: str, request: Message) -> None:
        await self.ask(method, request, wkt.Empty)


@asynccontextmanager
async def connected(stage: Stage) -> AsyncIterator[Client]:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(stage.shim.pod("pod") / "shim.sock"))
    async with Client(sock) as client:
        yield client
