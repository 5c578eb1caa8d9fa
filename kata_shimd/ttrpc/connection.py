"""One accepted connection: events of the protocol in, handlers run, replies out.

The order that a journal needs is kept here: a request is taken in one place (`_on_request`), its outcome fixed and
written in one place (`_commit`), and nothing happens for a call after that. What must never happen: an await in the
reader, a second final frame for a stream, or a handler that outlives its connection without having asked to.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import copy_context
from typing import Any, Final

from ..errors import Code, DeadlineExceeded, InvalidArgument, ResourceExhausted, ShimError, Unavailable, Unimplemented
from .channel import FrameSink, FrameSource, Limits
from .envelope import Request, Status
from .events import DataReceived, Event, Ignored, Refused, RequestReceived, StreamFailed
from .inbox import Inbox
from .protocol import Connection, Role
from .service import Boundary, Call, Method, now, status_of

#: (service, method) → how to do it
Table = dict[tuple[str, str], Method[Any, Any]]

#: How a connection's bytes come in and go out; the classes themselves, unless there is more to it.
SourceMaker = Callable[[int, Callable[[bytes], None], Callable[[OSError | None], None]], FrameSource]
SinkMaker = Callable[[int, Limits, Callable[[ShimError], None]], FrameSink]

#: What a call came to: a reply; a failure; or None, the end of a stream of replies.
Outcome = bytes | Status | None


class ServerConnection:
    """Owns ``sock`` from `start` to `lose`. ``on_lost(self, error)`` is called once, when it is closed."""

    def __init__(
        self,
        name: str,
        sock: socket.socket,
        table: Table,
        group: asyncio.TaskGroup,
        boundary: Boundary,
        limits: Limits,
        on_lost: Callable[["ServerConnection", ShimError], None],
        source: SourceMaker,
        sink: SinkMaker,
    ) -> None:
        self.name = name
        self._sock = sock
        self._table = table
        self._group = group
        self._boundary = boundary
        self._limits = limits
        self._on_lost = on_lost
        self._protocol = Connection(Role.SERVER, max_data=limits.max_data, max_streams=limits.max_streams)
        self._source = source(sock.fileno(), self._receive, self._ended)
        self._sink = sink(sock.fileno(), limits, self.lose)
        self._loop = asyncio.get_running_loop()
        self._tasks: dict[int, asyncio.Task[None]] = {}  # those that end with the connection, by stream
        self._streams: dict[int, Stream] = {}
        self._timers: dict[int, asyncio.TimerHandle] = {}  # deadlines of detached calls
        self._finished: asyncio.Event | None = None
        self._error: ShimError | None = None

    def start(self) -> None:
        self._source.start()

    async def finish(self) -> None:
        """Refuse new calls; return when those under way are answered and the answers sent, or the connection is lost."""
        self._finished = asyncio.Event()
        self._check_finished()
        await self._finished.wait()
        with suppress(Unavailable):
            await self._sink.flushed()

    def lose(self, error: ShimError) -> None:
        """Close the connection and cancel what runs for it, detached handlers excepted."""
        if self._error is not None:
            return
        self._error = error
        self._source.close()
        self._sink.close(error)
        with suppress(OSError):
            # Closing is not enough when another process holds the socket too (crash.md §3).
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
        for stream in self._streams.values():
            stream.inbox.end(error)
        for timer in self._timers.values():
            timer.cancel()
        for task in self._tasks.values():
            task.cancel()
        self._check_finished()
        self._on_lost(self, error)

    # Receiving

    def _receive(self, data: bytes) -> None:
        self._sink.cork()
        try:
            for event in self._protocol.receive(data):
                _REACTIONS[type(event)](self, event)
                if self._error is not None:
                    return
        except BaseException as error:
            self.lose(Unavailable("serve", self.name, f"internal error: {type(error).__name__}"))
            raise
        finally:
            self._sink.uncork()

    def _ended(self, error: OSError | None) -> None:
        self.lose(connection_lost(self._protocol.receive_eof().missing, error))

    def _on_request(self, event: RequestReceived) -> None:
        request, stream = event.request, event.stream
        method = self._table.get((request.service, request.method))
        refusal = self._refusal(event, method)
        if refusal is not None or method is None:
            self._commit(stream, refusal)
            return
        deadline = now() + request.timeout_nano / 1e9 if request.timeout_nano else None
        call = Call(self.name, stream, request.service, request.method, request.metadata, deadline)
        if method.immediate:
            # In a context of its own, as a task would be: what the handler sets must not stick to the reader.
            self._commit(stream, copy_context().run(self._run_now, call, method, request.payload))
        else:
            self._begin(call, method, event)

    def _refusal(self, event: RequestReceived, method: Method[Any, Any] | None) -> Status | None:
        request = event.request
        what = f"{request.service}/{request.method}"
        if self._finished is not None:
            return status_of(Unavailable("serve", what, "the server is stopping"))
        if method is None:
            return self._unknown(request)
        if method.streaming != event.streaming and (event.open or method.streaming):
            kind = "a stream" if method.streaming else "unary"
            return status_of(InvalidArgument("serve", what, f"the method is {kind}, the call is not"))
        if request.timeout_nano < 0 and method.enforce_deadline:
            return status_of(DeadlineExceeded("serve", what, "deadline had passed on arrival"))
        return None

    def _unknown(self, request: Request) -> Status:
        known = any(service == request.service for service, _ in self._table)
        what, name = ("method", f"{request.service}/{request.method}") if known else ("service", request.service)
        return status_of(Unimplemented("serve", name, f"no such {what}"))

    def _on_data(self, event: DataReceived) -> None:
        stream = self._streams.get(event.stream)
        if stream is None:
            return  # its handler has ended, and the end is on its way
        if event.data is not None and not stream.inbox.put(event.data):
            error = ResourceExhausted("receive", f"stream {event.stream}", "more messages than the handler takes")
            self._commit(event.stream, status_of(error))
            self._stop(event.stream, error)
        elif event.last:
            stream.inbox.end()

    def _on_failed(self, event: StreamFailed) -> None:
        self._sink.write(event.answer)
        self._stop(event.stream, InvalidArgument("receive", f"stream {event.stream}", event.status.message))
        self._check_finished()

    def _on_refused(self, event: Refused) -> None:
        self._sink.write(event.answer)

    def _on_nothing(self, _event: Ignored) -> None:
        return None

    # Running

    def _begin(self, call: Call, method: Method[Any, Any], event: RequestReceived) -> None:
        stream: Stream | None = None
        if method.streaming:
            stream = self._streams[call.stream] = self._open_stream(call, method, event)
        task = self._group.create_task(
            self._run(call, method, stream or event.request.payload), name=f"{call.id} {call.service}/{call.method}"
        )
        if not method.detached:
            self._tasks[call.stream] = task
        elif call.deadline is not None and method.enforce_deadline:
            self._timers[call.stream] = self._loop.call_later(call.deadline - now(), self._answer_late, call)

    def _open_stream(self, call: Call, method: Method[Any, Any], event: RequestReceived) -> "Stream":
        inbox = Inbox(self._limits.stream_messages, self._limits.stream_bytes)
        if event.has_payload:
            inbox.put(event.request.payload)
        if not event.open:
            inbox.end()
        return Stream(call, method, inbox, self._sink, self._protocol)

    def _run_now(self, call: Call, method: Method[Any, Any], payload: bytes) -> Outcome:
        try:
            with self._boundary(call):
                reply: bytes = method.encode(method.handler(call, _decode(call, method, payload)))
                return reply
        except ShimError as error:
            return status_of(error)

    async def _run(self, call: Call, method: Method[Any, Any], argument: "bytes | Stream") -> None:
        try:
            outcome = await self._outcome(call, method, argument)
        finally:
            self._tasks.pop(call.stream, None)
            self._streams.pop(call.stream, None)
            timer = self._timers.pop(call.stream, None)
            if timer is not None:
                timer.cancel()
        self._commit(call.stream, outcome)

    async def _outcome(self, call: Call, method: Method[Any, Any], argument: "bytes | Stream") -> Outcome:
        limit = call.remaining() if method.enforce_deadline and not method.detached else None
        try:
            with self._boundary(call):
                async with asyncio.timeout(limit):
                    result = method.handler(
                        call, argument if isinstance(argument, Stream) else _decode(call, method, argument)
                    )
                    if isinstance(result, Awaitable):
                        result = await result
                return None if method.server_streaming else method.encode(result)
        except ShimError as error:
            return status_of(error)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise  # we are wanted no more: the connection is lost, or the server has stopped
            return Status(Code.CANCELED, f"serve: {call.service}/{call.method}: cancelled by something it waited for")

    def _answer_late(self, call: Call) -> None:
        error = DeadlineExceeded("serve", f"{call.service}/{call.method}", "deadline has passed; it goes on regardless")
        self._commit(call.stream, status_of(error))

    def _stop(self, stream: int, error: ShimError) -> None:
        """A stream has failed under its handler."""
        open_stream = self._streams.pop(stream, None)
        if open_stream is not None:
            open_stream.inbox.end(error)
        task = self._tasks.pop(stream, None)
        if task is not None:
            task.cancel()

    # Answering

    def _commit(self, stream: int, outcome: Outcome) -> None:
        """The outcome of a call is fixed and sent; unless the stream is over already, which keeps its first answer."""
        if self._protocol.is_live(stream):
            if outcome is None:
                frame = self._protocol.send_end(stream)
            elif isinstance(outcome, Status):
                frame = self._protocol.send_status(stream, outcome)
            else:
                frame = self._protocol.send_reply(stream, outcome)
            self._sink.write(frame)
        self._check_finished()

    def _check_finished(self) -> None:
        if self._finished is not None and (self._error is not None or not self._protocol.live):
            self._finished.set()


class Stream:
    """The handler's side of a stream; see `service.ServerStream`."""

    __slots__ = ("_call", "_method", "_protocol", "_sink", "inbox")

    def __init__(
        self, call: Call, method: Method[Any, Any], inbox: Inbox, sink: FrameSink, protocol: Connection
    ) -> None:
        self.inbox = inbox
        self._call = call
        self._method = method
        self._sink = sink
        self._protocol = protocol

    async def receive(self) -> Any:
        data = await self.inbox.get()
        return None if data is None else _decode(self._call, self._method, data)

    async def send(self, message: Any) -> None:
        await self._sink.drained()
        if not self._protocol.is_live(self._call.stream):
            raise Unavailable("send", self._call.id, "the stream is over")
        self._sink.write(self._protocol.send_data(self._call.stream, self._method.encode(message)))

    def __aiter__(self) -> "Stream":
        return self

    async def __anext__(self) -> Any:
        message = await self.receive()
        if message is None:
            raise StopAsyncIteration
        return message


def connection_lost(missing: int, error: OSError | None) -> Unavailable:
    """Why nothing more will come: ``error``, or an end, clean or ``missing`` bytes short of a frame."""
    if error is not None:
        cause = error.strerror or str(error)
    else:
        cause = f"the peer broke off {missing} bytes short of a whole frame" if missing else "the peer has closed"
    lost = Unavailable("receive", cause=cause)
    lost.__cause__ = error
    return lost


def _decode(call: Call, method: Method[Any, Any], payload: bytes) -> Any:
    try:
        return method.decode(payload)
    except Exception as error:  # a codec given hostile bytes may raise anything at all
        what = f"{call.service}/{call.method}"
        raise InvalidArgument("decode request", what, f"{len(payload)} bytes: {type(error).__name__}") from error


_REACTIONS: Final[dict[type[Event], Callable[[ServerConnection, Any], None]]] = {
    RequestReceived: ServerConnection._on_request,
    DataReceived: ServerConnection._on_data,
    StreamFailed: ServerConnection._on_failed,
    Refused: ServerConnection._on_refused,
    Ignored: ServerConnection._on_nothing,
}
