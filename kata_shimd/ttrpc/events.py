"""What a `protocol.Connection` reports about the bytes it was given. Values, in the order of arrival."""

from dataclasses import dataclass

from .envelope import Request, Response, Status


@dataclass(frozen=True, slots=True)
class RequestReceived:
    """Server: a new stream. ``streaming``: it was opened as a stream; ``open``: the client will send data on it."""

    stream: int
    request: Request
    streaming: bool
    open: bool
    has_payload: bool


@dataclass(frozen=True, slots=True)
class ResponseReceived:
    """Client: the last word on a stream."""

    stream: int
    response: Response


@dataclass(frozen=True, slots=True)
class DataReceived:
    """One message on a stream, or only the news that it was the last. ``data`` is None when the frame has none."""

    stream: int
    data: bytes | None
    last: bool


@dataclass(frozen=True, slots=True)
class StreamFailed:
    """A stream we knew is over because of what the peer sent; ``answer`` (server) tells the peer, b"" sends nothing."""

    stream: int
    status: Status
    answer: bytes


@dataclass(frozen=True, slots=True)
class Refused:
    """Server: a frame that began or belonged to no stream; ``answer`` tells the peer."""

    stream: int
    status: Status
    answer: bytes


@dataclass(frozen=True, slots=True)
class Ignored:
    """A frame with no consequence: of an unknown type, or for a stream that is over."""

    stream: int
    type: int


@dataclass(frozen=True, slots=True)
class PeerClosed:
    """The byte stream is over. ``missing`` is how many bytes the frame it broke off in lacked; 0 is a clean end."""

    missing: int


@dataclass(frozen=True, slots=True)
class PeerHostile:
    """Client: the peer sends mostly frames that nobody asked for. Nothing after this is looked at."""

    strays: int


Event = RequestReceived | ResponseReceived | DataReceived | StreamFailed | Refused | Ignored | PeerClosed | PeerHostile
