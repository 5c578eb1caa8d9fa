"""What is served: neutral tables of methods, and the context that each call hands to its handler.

Nothing here knows ttrpc, so the same tables can be served by another protocol's adapter. Generated message classes
come in only as the two functions ``decode`` and ``encode``.
"""

import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

from ..errors import Code, DeadlineExceeded, ShimError
from .envelope import Detail, Metadata, Status

Req = TypeVar("Req")
Resp = TypeVar("Resp")
ReqCo = TypeVar("ReqCo", covariant=True)
RespContra = TypeVar("RespContra", contravariant=True)


def now() -> float:
    """Seconds on the clock of deadlines, which goes on while the host sleeps and is the same for every process."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True)
class Call:
    """One call: its durable identity (``connection``, ``stream``), what is called, and until when.

    A connection's name is never used twice by a server, a stream id never twice on a connection while it is live.
    """

    connection: str
    stream: int
    service: str
    method: str
    metadata: Metadata
    deadline: float | None

    @property
    def id(self) -> str:
        """The name of this call for effects that must happen once: ``c3/17``."""
        return f"{self.connection}/{self.stream}"

    def remaining(self) -> float | None:
        """Seconds until the deadline, below 0 when it has passed; None without one."""
        return None if self.deadline is None else self.deadline - now()


class ServerStream(Protocol[ReqCo, RespContra]):
    """What a streaming handler talks to."""

    async def receive(self) -> ReqCo | None:
        """The next message; None once the client has ended its side. Raises ShimError when the stream is lost."""

    async def send(self, message: RespContra) -> None:
        """Send one message; waits while the peer takes nothing. Raises ShimError when the stream is lost."""

    def __aiter__(self) -> "ServerStream[ReqCo, RespContra]": ...

    async def __anext__(self) -> ReqCo: ...


UnaryHandler = Callable[[Call, Req], Resp | Awaitable[Resp]]
StreamHandler = Callable[[Call, ServerStream[Req, Resp]], Awaitable[Resp | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Method(Generic[Req, Resp]):
    """How one method is carried out.

    A unary ``handler(call, request)`` returns the reply; a streaming ``handler(call, stream)`` gets its request(s) from
    ``stream.receive()`` and returns the reply if only the client streams, else nothing. Whatever fails is raised as ShimError.

    ``immediate``: the handler is a plain function that returns at once; it runs inside the reader, without a task, and
    neither deadline nor cancellation can reach it. ``detached``: the handler runs to its end although its caller is gone
    or its deadline has passed (which is answered in time all the same). ``enforce_deadline`` False: the handler sees to it.
    """

    handler: UnaryHandler[Req, Resp] | StreamHandler[Req, Resp]
    decode: Callable[[bytes], Req]
    encode: Callable[[Resp], bytes]
    client_streaming: bool = False
    server_streaming: bool = False
    immediate: bool = False
    detached: bool = False
    enforce_deadline: bool = True

    def __post_init__(self) -> None:
        if self.immediate and (self.streaming or self.detached):
            raise TypeError("an immediate method is unary and has nothing to detach")

    @property
    def streaming(self) -> bool:
        return self.client_streaming or self.server_streaming


@dataclass(frozen=True, slots=True)
class Service:
    """``name`` is the full name on the wire (``containerd.task.v2.Task``), keys of ``methods`` are bare (``Create``)."""

    name: str
    methods: Mapping[str, Method[Any, Any]]


#: Stands round every handler: entered before the request is decoded, left after the reply is encoded. Whatever leaves it must be
#: a ShimError (or a cancellation), which it achieves by raising one in ``__exit__``; entered in the handler's own task, if any.
Boundary = Callable[[Call], AbstractContextManager[None]]


class Unexpected(ShimError):
    """A handler failed in a way that nobody foresaw; its text stays in the log, the caller learns the type only."""


class DefaultBoundary:
    """ShimError passes; TimeoutError is DEADLINE_EXCEEDED; any other Exception is UNKNOWN without its text."""

    __slots__ = ("_call",)

    def __init__(self, call: Call) -> None:
        self._call = call

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, ShimError) or not isinstance(error, Exception):
            return
        what = f"{self._call.service}/{self._call.method}"
        if isinstance(error, TimeoutError):
            raise DeadlineExceeded("serve", what, "deadline has passed") from error
        raise Unexpected("serve", what, type(error).__name__) from error


class RpcError(ShimError):
    """The peer answered a call with a status: ``code``, ``message`` and ``details`` are the peer's own."""

    def __init__(self, rpc: str, status: Status) -> None:
        super().__init__("call", rpc, status.message)
        self.status = status
        self.code = Code(status.code) if status.code in Code._value2member_map_ and status.code else Code.UNKNOWN

    @property
    def message(self) -> str:
        return self.status.message

    @property
    def details(self) -> tuple[Detail, ...]:
        return self.status.details


def status_of(error: ShimError) -> Status:
    """What the peer is told of ``error``."""
    return Status(int(error.code), str(error), error.details if isinstance(error, RpcError) else ())
