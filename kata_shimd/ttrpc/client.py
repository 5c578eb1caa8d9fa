"""The calling end: many calls at once on one connection, payloads in bytes.

Needs no task of its own: the descriptor's callbacks resolve the futures that callers wait on. What must never happen: a call
that hangs when the connection is gone, or one caller's time-out disturbing another.
"""

import asyncio
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self

from ..errors import DeadlineExceeded, FailedPrecondition, ResourceExhausted, ShimError, Unavailable
from .channel import FrameSink, FrameSource, Limits
from .connection import SinkMaker, SourceMaker, connection_lost
from .envelope import NO_METADATA, Metadata, Response
from .events import DataReceived, Event, Ignored, PeerHostile, ResponseReceived, StreamFailed
from .inbox import Inbox
from .protocol import Connection, Kind, Role
from .service import RpcError


class Client:
    """Owns ``sock``. Ready at once; `close`, or leaving ``async with``, ends it. ``on_lost(error)`` is called once.

    Errors of every call: RpcError (the peer's answer), DeadlineExceeded (no answer within ``timeout`` seconds; a late one is
    dropped), Unavailable (the connection is lost, all calls at once), ResourceExhausted (a request or reply too large).
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        limits: Limits | None = None,
        on_lost: Callable[[ShimError], None] | None = None,
        source: SourceMaker = FrameSource,
        sink: SinkMaker = FrameSink,
    ) -> None:
        self._limits = limits or Limits()
        self._sock = sock
        self._on_lost = on_lost
        self._protocol = Connection(Role.CLIENT, max_data=self._limits.max_data)
        self._calls: dict[int, Pending] = {}
        self._error: ShimError | None = None
        sock.setblocking(False)
        self._source = source(sock.fileno(), self._receive, self._ended)
        self._sink = sink(sock.fileno(), self._limits, self._lose)
        self._source.start()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def error(self) -> ShimError | None:
        """Why the connection is gone; None while it lives."""
        return self._error

    def close(self) -> None:
        """Close the connection; calls under way fail with Unavailable."""
        self._lose(Unavailable("call", cause="the connection was closed by its owner"))

    async def call(
        self,
        service: str,
        method: str,
        payload: bytes = b"",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, tuple[str, ...]] | None = None,
    ) -> bytes:
        """A unary call; returns the payload of the reply."""
        try:
            async with asyncio.timeout(timeout):
                await self._ready()
                return await self._call(service, method, payload, timeout, _lowered(metadata))
        except TimeoutError as error:
            raise _late(f"{service}/{method}", timeout) from error

    async def stream(
        self,
        service: str,
        method: str,
        payload: bytes = b"",
        *,
        client_streaming: bool = False,
        timeout: float | None = None,
        metadata: Mapping[str, tuple[str, ...]] | None = None,
    ) -> "ClientStream":
        """Open a stream, as ``async with await client.stream(…) as stream:``; leaving the block forgets it.

        ``payload`` is the one request of a method whose client does not stream. ``timeout`` is for the stream as a whole.
        """
        rpc = f"{service}/{method}"
        try:
            async with asyncio.timeout(timeout):
                await self._ready()
        except TimeoutError as error:
            raise _late(rpc, timeout) from error
        kind = Kind.OPEN if client_streaming else Kind.ASK
        stream, frame = self._protocol.send_request(
            service, method, payload, kind=kind, timeout_nano=_nanoseconds(timeout), metadata=_lowered(metadata)
        )
        opened = ClientStream(self, stream, rpc, client_streaming, timeout)
        self._calls[stream] = opened
        self._sink.write(frame)
        return opened

    async def _call(
        self, service: str, method: str, payload: bytes, timeout: float | None, metadata: Metadata
    ) -> bytes:
        stream, call = self._begin(service, method, payload, timeout, metadata)
        try:
            return await call.reply
        finally:
            self._forget(stream)
            call.settle()

    def _begin(
        self, service: str, method: str, payload: bytes, timeout: float | None, metadata: Metadata
    ) -> "tuple[int, UnaryCall]":
        stream, frame = self._protocol.send_request(
            service, method, payload, timeout_nano=_nanoseconds(timeout), metadata=metadata
        )
        call = self._calls[stream] = UnaryCall(f"{service}/{method}")
        self._sent(stream, frame)
        self._sink.write(frame)
        return stream, call

    def _sent(self, stream: int, frame: bytes) -> None:
        """A call is about to be sent; for a subclass that keeps account."""

    async def _ready(self) -> None:
        """Wait for room. Raises the error of the connection when it is gone."""
        if self._error is None:
            await self._sink.drained()
        if self._error is not None:
            raise Unavailable("call", cause=str(self._error))

    def _forget(self, stream: int) -> None:
        if self._calls.pop(stream, None) is not None:
            self._protocol.forget(stream)

    def _send_data(self, stream: int, data: bytes) -> None:
        self._sink.write(self._protocol.send_data(stream, data))

    def _send_end(self, stream: int) -> None:
        if self._protocol.is_live(stream):
            self._sink.write(self._protocol.send_end(stream))

    def _new_inbox(self) -> Inbox:
        return Inbox(self._limits.stream_messages, self._limits.stream_bytes)

    # Receiving

    def _receive(self, data: bytes) -> None:
        try:
            for event in self._protocol.receive(data):
                _REACTIONS[type(event)](self, event)
        except BaseException as error:
            self._lose(Unavailable("receive", cause=f"internal error: {type(error).__name__}"))
            raise

    def _on_response(self, event: ResponseReceived) -> None:
        call = self._calls.pop(event.stream, None)
        if call is not None:
            call.answered(event.response)

    def _on_data(self, event: DataReceived) -> None:
        call = self._calls.get(event.stream)
        if call is None:
            return
        if event.data is not None:
            call.took(event.data)
        if event.last:
            self._calls.pop(event.stream, None)
            call.ended()

    def _on_failed(self, event: StreamFailed) -> None:
        call = self._calls.pop(event.stream, None)
        if call is not None:
            call.failed(RpcError(call.rpc, event.status))

    def _on_ignored(self, _event: Ignored) -> None:
        return None

    def _on_hostile(self, event: PeerHostile) -> None:
        self._lose(Unavailable("receive", cause=f"the peer sent {event.strays} frames that nobody asked for"))

    def _ended(self, error: OSError | None) -> None:
        self._lose(connection_lost(self._protocol.receive_eof().missing, error))

    def _lose(self, error: ShimError) -> None:
        if self._error is not None:
            return
        self._error = error
        self._source.close()
        self._sink.close(error)
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call.failed(Unavailable("call", call.rpc, str(error)))
        if self._on_lost is not None:
            self._on_lost(error)


class UnaryCall:
    """Waits for one response."""

    __slots__ = ("reply", "rpc")

    def __init__(self, rpc: str) -> None:
        self.rpc = rpc
        self.reply: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def answered(self, response: Response) -> None:
        if self.reply.done():
            return
        if response.status is not None and response.status.code:
            self.reply.set_exception(RpcError(self.rpc, response.status))
        else:
            self.reply.set_result(response.payload)

    def took(self, _data: bytes) -> None:
        raise AssertionError("the protocol lets no data through on a unary stream")

    def ended(self) -> None:
        raise AssertionError("the protocol lets no data through on a unary stream")

    def failed(self, error: ShimError) -> None:
        if not self.reply.done():
            self.reply.set_exception(error)

    def settle(self) -> None:
        """The caller is gone, perhaps cancelled in the very moment of a failure, which nobody will look at now."""
        if self.reply.done() and not self.reply.cancelled():
            self.reply.exception()


class ClientStream:
    """One stream. `receive` gives messages as bytes; the end, or the final response, closes it."""

    def __init__(self, client: Client, stream: int, rpc: str, client_streaming: bool, timeout: float | None) -> None:
        self.rpc = rpc
        self._client = client
        self._stream = stream
        self._inbox = client._new_inbox()
        self._open = client_streaming  # whether our side is
        self._over = False  # the whole stream
        self._timeout = timeout
        loop = asyncio.get_running_loop()
        self._timer = None if timeout is None else loop.call_later(timeout, self._expire)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self.close()

    async def send(self, data: bytes) -> None:
        """One message; waits while the peer takes nothing. Raises how the stream ended, if it did."""
        await self._client._ready()
        if self._over:
            raise self._inbox.error or Unavailable("send", self.rpc, "the peer has ended the stream")
        if not self._open:
            raise FailedPrecondition("send", self.rpc, "our side of the stream is closed")
        self._client._send_data(self._stream, data)

    def end(self) -> None:
        """Our last message is sent; the peer may go on."""
        if self._open and not self._over:
            self._client._send_end(self._stream)
        self._open = False

    async def receive(self) -> bytes | None:
        """The next message; None at the end. Raises RpcError when the peer ended the stream with a failure."""
        return await self._inbox.get()

    async def result(self) -> bytes:
        """The one reply of a method whose server does not stream."""
        self.end()
        reply = await self.receive()
        if reply is None:
            raise Unavailable("call", self.rpc, "the peer ended the stream without a reply")
        return reply

    def close(self) -> None:
        """Forget the stream; the peer hears of it only if our side was open."""
        self._give_up(None)

    def __aiter__(self) -> "ClientStream":
        return self

    async def __anext__(self) -> bytes:
        data = await self.receive()
        if data is None:
            raise StopAsyncIteration
        return data

    def answered(self, response: Response) -> None:
        if response.status is not None and response.status.code:
            self._finish(RpcError(self.rpc, response.status))
        else:
            self.took(response.payload)
            self._finish(None)

    def took(self, data: bytes) -> None:
        if not self._inbox.put(data):
            self._give_up(ResourceExhausted("receive", self.rpc, "more messages than are taken"))

    def ended(self) -> None:
        self._finish(None)

    def failed(self, error: ShimError) -> None:
        self._finish(error)

    def _expire(self) -> None:
        self._give_up(_late(self.rpc, self._timeout))

    def _give_up(self, error: ShimError | None) -> None:
        self.end()
        self._client._forget(self._stream)
        self._finish(error)

    def _finish(self, error: ShimError | None) -> None:
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._inbox.end(error)


Pending = UnaryCall | ClientStream


def _late(rpc: str, timeout: float | None) -> DeadlineExceeded:
    return DeadlineExceeded("call", rpc, f"no answer within {timeout or 0:g} s")


def _nanoseconds(timeout: float | None) -> int:
    """What is said on the wire, where 0 means for ever."""
    return 0 if timeout is None else max(1, int(timeout * 1e9))


def _lowered(metadata: Mapping[str, tuple[str, ...]] | None) -> Metadata:
    return {key.lower(): values for key, values in metadata.items()} if metadata else NO_METADATA


_REACTIONS: Final[dict[type[Event], Callable[[Client, Any], None]]] = {
    ResponseReceived: Client._on_response,
    DataReceived: Client._on_data,
    StreamFailed: Client._on_failed,
    Ignored: Client._on_ignored,
    PeerHostile: Client._on_hostile,
}
