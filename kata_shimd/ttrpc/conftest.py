"""Every asynchronous test of this package runs on both loops and leaves no descriptor behind; what they call is here.

`Handlers` is a service for both ends; `raw_client` and `raw_server` are connections whose other end speaks frames by hand.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest
import uvloop

from ..errors import Code, NotFound, Unavailable
from . import Call, Client, Limits, Method, RpcError, Server, Service, Status
from .envelope import Detail, Request, decode_response, encode_request
from .frames import MAX_DATA, RESPONSE, Frame
from .testing import RawPeer, memory_pair

NAME = "test.v1.Test"
SMALL = Limits(stream_messages=4, stream_bytes=1 << 20, write_high=64 << 10, write_low=16 << 10, write_max=1 << 20)

mark: ContextVar[str] = ContextVar("mark", default="none")


class Handlers:
    """What the server does; each test looks at the fields that its methods write."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.entered = asyncio.Event()
        self.release = asyncio.Event()
        self.ended = asyncio.Event()
        self.how = ""

    def now(self, call: Call, request: bytes) -> bytes:
        self.calls.append(call)
        previous = mark.get()
        mark.set("dirty")
        return request or previous.encode()

    async def echo(self, call: Call, request: bytes) -> bytes:
        self.calls.append(call)
        return request

    async def wait(self, _call: Call, request: bytes) -> bytes:
        self.entered.set()
        try:
            await self.release.wait()
            self.how = "released"
        except asyncio.CancelledError:
            self.how = "cancelled"
            raise
        finally:
            self.ended.set()
        return request

    async def not_found(self, _call: Call, _request: bytes) -> bytes:
        raise NotFound("find", "it", "gone", hint="look elsewhere")

    async def details(self, _call: Call, _request: bytes) -> bytes:
        raise RpcError("inner", Status(Code.ABORTED, "inner text", (Detail("type", b"value"),)))

    async def bug(self, _call: Call, _request: bytes) -> bytes:
        raise KeyError("secret")

    def bug_now(self, _call: Call, _request: bytes) -> bytes:
        raise KeyError("secret")

    async def cancels_itself(self, _call: Call, _request: bytes) -> bytes:
        raise asyncio.CancelledError

    async def huge(self, _call: Call, _request: bytes) -> bytes:
        return bytes(MAX_DATA)

    async def sum_up(self, _call: Call, stream: Any) -> bytes:
        return str(sum([len(message) async for message in stream])).encode()

    async def count(self, _call: Call, stream: Any) -> None:
        for number in range(int(await stream.receive())):
            await stream.send(b"%d" % number)

    async def chat(self, _call: Call, stream: Any) -> None:
        async for message in stream:
            await stream.send(message.upper())

    async def idle(self, call: Call, _stream: Any) -> None:
        await self.wait(call, b"")

    async def flood(self, _call: Call, stream: Any) -> None:
        try:
            while True:
                await stream.send(bytes(32 << 10))
                self.entered.set()
        finally:
            self.ended.set()

    def service(self) -> Service:
        return Service(
            NAME,
            {
                "Now": method(self.now, immediate=True),
                "Echo": method(self.echo),
                "Wait": method(self.wait),
                "Detached": method(self.wait, detached=True),
                "Own": method(self.wait, enforce_deadline=False),
                "NotFound": method(self.not_found),
                "Details": method(self.details),
                "Bug": method(self.bug),
                "BugNow": method(self.bug_now, immediate=True),
                "Cancelled": method(self.cancels_itself),
                "Huge": method(self.huge),
                "Picky": method(self.echo, decode=lambda data: data.decode("ascii")),
                "Sum": method(self.sum_up, client_streaming=True),
                "Count": method(self.count, server_streaming=True),
                "Chat": method(self.chat, client_streaming=True, server_streaming=True),
                "Idle": method(self.idle, client_streaming=True, server_streaming=True),
                "Flood": method(self.flood, server_streaming=True),
            },
        )


def method(handler: Any, **options: Any) -> Method[bytes, bytes]:
    return Method(handler=handler, **{"decode": bytes, "encode": bytes, **options})


@asynccontextmanager
async def raw_client(handlers: Handlers, **options: Any) -> AsyncIterator[tuple[RawPeer, Server]]:
    """A server, and a peer that calls it by hand."""
    ours, theirs = socket.socketpair()
    async with RawPeer(ours) as peer, Server(None, [handlers.service()], drain_budget=0, **options) as server:
        server.adopt(theirs)
        yield peer, server


@asynccontextmanager
async def raw_server(**options: Any) -> AsyncIterator[tuple[RawPeer, Client]]:
    """A client, and a peer that answers it by hand."""
    ours, theirs = socket.socketpair()
    async with RawPeer(ours) as peer, Client(theirs, **options) as client:
        yield peer, client


def request(method: str, payload: bytes = b"", **more: Any) -> bytes:
    return encode_request(Request(NAME, method, payload, **more))


def code_of(frame: Frame) -> int:
    assert frame.type == RESPONSE
    status = decode_response(frame.data).status
    return 0 if status is None else status.code


async def failure(client: Client, method: str, payload: bytes = b"", **options: Any) -> RpcError:
    with pytest.raises(RpcError) as caught:
        await client.call(NAME, method, payload, **options)
    return caught.value


async def unavailable(client: Client) -> None:
    """A call that ends because the connection is lost."""
    with pytest.raises(Unavailable):
        await client.call(NAME, "Wait")


# libuv opens a pipe for signals once in the life of a process; let it be before anything is counted.
uvloop.new_event_loop().close()


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"asyncio": asyncio.SelectorEventLoop, "uvloop": uvloop.new_event_loop}


@pytest.fixture(autouse=True)
def no_descriptor_left() -> Iterator[None]:
    before = len(list(Path("/proc/self/fd").iterdir()))
    yield
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.fixture
async def handlers() -> Handlers:
    return Handlers()


@pytest.fixture
async def client(handlers: Handlers) -> AsyncIterator[Client]:
    async with memory_pair([handlers.service()], drain_budget=0) as (made, _):
        yield made
