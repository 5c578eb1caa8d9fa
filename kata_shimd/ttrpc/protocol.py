"""ttrpc without input and output: bytes in, events out; method calls in, bytes out.

Everything that changes the state of a stream is in this file, and all of it goes through `TRANSITIONS`. The table
is shared by both ends: what one end may *send* in a state is what the other may *receive* in it. A missing key is the
error; it costs that stream only, never the connection. What must never happen here: a system call, an await, or
an exception for anything a peer can send.

The answers to every malformed input are listed in docs/ttrpc.md. Facts: containerd.md §3.
"""

from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import Final

from ..errors import Code, ResourceExhausted, Unavailable
from . import envelope, frames
from .envelope import NO_METADATA, Malformed, Metadata, Request, Response, Status
from .events import (
    DataReceived,
    Event,
    Ignored,
    PeerClosed,
    PeerHostile,
    Refused,
    RequestReceived,
    ResponseReceived,
    StreamFailed,
)
from .frames import MAX_DATA, NO_DATA, REMOTE_CLOSED, REMOTE_OPEN, Frame, FrameDecoder, Oversize


class Role(IntEnum):
    """Who we are; and, as the first part of a key, who sent the frame."""

    CLIENT = 0
    SERVER = 1


class State(IntEnum):
    """Of one stream, the same seen from either end."""

    IDLE = 0  # no such stream yet, or no longer
    UNARY = 1  # one request was sent, one response is owed
    OPEN = 2  # both ends may send data
    CLIENT_DONE = 3  # the client has sent its last data
    SERVER_DONE = 4  # the server has said its last; what the client had under way is dropped up to its end
    ABANDONED = 5  # the client has given up; what the server says is dropped up to its end
    ENDED = 6  # nothing is owed either way; forgotten at once


class Kind(IntEnum):
    """A frame's type together with those of its flags that decide a step."""

    CALL = 0  # request without flags: unary
    OPEN = 1  # request, and the client goes on sending
    ASK = 2  # request, the client's only message, for a stream of replies
    RESPONSE = 3
    DATA = 4
    LAST = 5  # data, and the sender's end


#: Every legal step: (sender of the frame, state, frame) → state.
TRANSITIONS: Final[dict[tuple[Role, State, Kind], State]] = {
    (Role.CLIENT, State.IDLE, Kind.CALL): State.UNARY,
    (Role.CLIENT, State.IDLE, Kind.OPEN): State.OPEN,
    (Role.CLIENT, State.IDLE, Kind.ASK): State.CLIENT_DONE,
    (Role.CLIENT, State.OPEN, Kind.DATA): State.OPEN,
    (Role.CLIENT, State.OPEN, Kind.LAST): State.CLIENT_DONE,
    (Role.CLIENT, State.SERVER_DONE, Kind.DATA): State.SERVER_DONE,
    (Role.CLIENT, State.SERVER_DONE, Kind.LAST): State.ENDED,
    (Role.SERVER, State.UNARY, Kind.RESPONSE): State.ENDED,
    (Role.SERVER, State.OPEN, Kind.DATA): State.OPEN,
    (Role.SERVER, State.OPEN, Kind.RESPONSE): State.SERVER_DONE,
    (Role.SERVER, State.OPEN, Kind.LAST): State.SERVER_DONE,
    (Role.SERVER, State.CLIENT_DONE, Kind.DATA): State.CLIENT_DONE,
    (Role.SERVER, State.CLIENT_DONE, Kind.RESPONSE): State.ENDED,
    (Role.SERVER, State.CLIENT_DONE, Kind.LAST): State.ENDED,
    (Role.SERVER, State.ABANDONED, Kind.DATA): State.ABANDONED,
    (Role.SERVER, State.ABANDONED, Kind.RESPONSE): State.ENDED,
    (Role.SERVER, State.ABANDONED, Kind.LAST): State.ENDED,
}

#: The state of a stream that is over for us while the peer may still be sending on it.
_LINGERING: Final = {Role.CLIENT: State.ABANDONED, Role.SERVER: State.SERVER_DONE}

_REQUEST_KINDS: Final = {0: Kind.CALL, REMOTE_OPEN: Kind.OPEN, REMOTE_CLOSED: Kind.ASK}
_REQUEST_FLAGS: Final = {Kind.CALL: 0, Kind.OPEN: REMOTE_OPEN, Kind.ASK: REMOTE_CLOSED}

_LIVE: Final = frozenset({State.UNARY, State.OPEN, State.CLIENT_DONE})

MAX_STREAMS: Final = 4096
MAX_LINGERING: Final = 1024
MAX_STRAYS: Final = 1024
MAX_STATUS_TEXT: Final = 64 << 10
LAST_STREAM_ID: Final = (1 << 32) - 1


class OutOfOrder(Exception):
    """We were asked to send what the table does not allow: an error in the code round this one, never the peer's."""


def kind_of(type_: int, flags: int) -> Kind | None:
    """What a frame is; None for a type that nobody has defined. Flags that nobody has defined mean nothing.

    A request that says both "open" and "closed" counts as open: the client's end will come as data.
    """
    if type_ == frames.REQUEST:
        return Kind.OPEN if flags & REMOTE_OPEN else _REQUEST_KINDS[flags & REMOTE_CLOSED]
    if type_ == frames.RESPONSE:
        return Kind.RESPONSE
    if type_ == frames.DATA:
        return Kind.LAST if flags & REMOTE_CLOSED else Kind.DATA
    return None


class Connection:
    """One end of a ttrpc connection.

    Invariants: `_streams` holds the live streams (UNARY, OPEN, CLIENT_DONE) and nothing else; `_lingering` those that are over
    for us only, is bounded, and gives up its oldest first; a stream gets at most one final frame from us.
    """

    def __init__(self, role: Role, *, max_data: int = MAX_DATA, max_streams: int = MAX_STREAMS) -> None:
        self.role = role
        self.strays = 0
        self._peer = Role.SERVER if role is Role.CLIENT else Role.CLIENT
        self._decoder = FrameDecoder(min(max_data, MAX_DATA))
        self._max_data = min(max_data, MAX_DATA)
        self._max_streams = max_streams
        self._streams: dict[int, State] = {}
        self._lingering: dict[int, State] = {}
        self._next_id = 1
        self._over = False

    @property
    def position(self) -> int:
        """Bytes of the peer's stream that have been dealt with; the rest belongs to a frame that is not complete."""
        return self._decoder.position

    def state(self, stream: int) -> State:
        return self._streams.get(stream) or self._lingering.get(stream, State.IDLE)

    def is_live(self, stream: int) -> bool:
        """Whether the stream is still ours to speak on (server) or to hear from (client)."""
        return stream in self._streams

    @property
    def live(self) -> int:
        """How many streams are live."""
        return len(self._streams)

    # Receiving

    def receive(self, data: bytes) -> list[Event]:
        """Take bytes as they came; return what they mean, in order."""
        events: list[Event] = []
        if self._over:
            return events
        for frame in self._decoder.feed(data):
            event = self._receive_frame(frame)
            if event is not None:
                events.append(event)
            if self._over:
                break
        return events

    def receive_eof(self) -> PeerClosed:
        """The peer has closed, or the connection broke. Nothing can be received after this."""
        self._over = True
        return PeerClosed(self._decoder.missing)

    def _receive_frame(self, frame: Frame | Oversize) -> Event | None:
        kind = kind_of(frame.type, frame.flags)
        if kind is None:
            return self._stray(frame)
        state = self.state(frame.stream)
        after = TRANSITIONS.get((self._peer, state, kind))
        if after is None or (self.role is Role.SERVER and state is State.IDLE and not self._may_begin(frame)):
            return self._out_of_place(frame, kind, state)
        self._move(frame.stream, after)
        if state is _LINGERING[self.role]:
            return None
        if isinstance(frame, Oversize):
            return self._fail(frame.stream, self._too_large(frame), announced=state is not State.IDLE)
        return _RECEIVE[kind](self, frame, kind)

    def _receive_request(self, frame: Frame, kind: Kind) -> Event:
        try:
            request = envelope.decode_request(frame.data)
        except Malformed as error:
            return self._fail(frame.stream, _status(Code.INVALID_ARGUMENT, f"request: {error}"), announced=False)
        # Both peers open a client's stream without a message, Rust saying NO_DATA and Go an empty payload.
        has_payload = kind is not Kind.OPEN or (bool(request.payload) and not frame.flags & NO_DATA)
        return RequestReceived(frame.stream, request, kind is not Kind.CALL, kind is Kind.OPEN, has_payload)

    def _receive_response(self, frame: Frame, _kind: Kind) -> Event:
        try:
            response = envelope.decode_response(frame.data)
        except Malformed as error:
            return StreamFailed(frame.stream, _status(Code.INTERNAL, f"response: {error}"), b"")
        self.strays -= self.strays > 0
        return ResponseReceived(frame.stream, response)

    def _receive_data(self, frame: Frame, kind: Kind) -> Event:
        self.strays -= self.strays > 0
        return DataReceived(frame.stream, None if frame.flags & NO_DATA else frame.data, kind is Kind.LAST)

    def _may_begin(self, frame: Frame | Oversize) -> bool:
        return bool(frame.stream & 1) and len(self._streams) < self._max_streams

    def _out_of_place(self, frame: Frame | Oversize, kind: Kind, state: State) -> Event:
        if self.role is Role.CLIENT and state in (State.IDLE, State.ABANDONED):
            return self._stray(frame)
        if self.role is Role.SERVER and kind is Kind.RESPONSE:
            # Never answered: two servers joined by mistake would go on refusing each other's refusals for ever.
            return self._stray(frame)
        status = self._too_large(frame) if isinstance(frame, Oversize) else self._complaint(frame, kind, state)
        return self._fail(frame.stream, status, announced=frame.stream in self._streams)

    def _complaint(self, frame: Frame, kind: Kind, state: State) -> Status:
        if self.role is Role.CLIENT:
            return _status(Code.INTERNAL, f"peer sent {kind.name} on a stream that is {state.name}")
        if not frame.stream & 1:
            return _status(Code.INVALID_ARGUMENT, "stream ids of a client are odd")
        if kind in _REQUEST_FLAGS and state is State.IDLE:
            return _status(Code.RESOURCE_EXHAUSTED, f"more than {self._max_streams} calls at once")
        if state is State.IDLE:
            return _status(Code.INVALID_ARGUMENT, "no such stream")
        return _status(Code.INVALID_ARGUMENT, f"{kind.name} on a stream that is {state.name}")

    def _stray(self, frame: Frame | Oversize) -> Event:
        if self.role is Role.CLIENT:
            self.strays += 1
            if self.strays > MAX_STRAYS:
                self._over = True
                return PeerHostile(self.strays)
        return Ignored(frame.stream, frame.type)

    def _too_large(self, frame: Oversize) -> Status:
        return _status(Code.RESOURCE_EXHAUSTED, f"{frame.length} bytes, at most {self._max_data} are taken")

    def _fail(self, stream: int, status: Status, *, announced: bool) -> Event:
        """End a stream because of what the peer sent on it; or answer for one that never was (``announced`` False)."""
        if self.role is Role.CLIENT:
            self.forget(stream)
            return StreamFailed(stream, status, b"")
        if stream in self._streams:
            self._step(stream, Kind.RESPONSE)
        return (StreamFailed if announced else Refused)(stream, status, _pack_response(stream, Response(status)))

    # Sending: client

    def send_request(
        self,
        service: str,
        method: str,
        payload: bytes = b"",
        *,
        kind: Kind = Kind.CALL,
        timeout_nano: int = 0,
        metadata: Metadata = NO_METADATA,
    ) -> tuple[int, bytes]:
        """Begin a stream; return its id and the bytes to send. Bytes must go out in the order of the calls.

        Raises ResourceExhausted (request too large), Unavailable (ids used up: the connection has had its time).
        """
        data = envelope.encode_request(Request(service, method, payload, timeout_nano, metadata))
        _check_size(f"{service}/{method}", data)
        stream = self._next_id
        if stream > LAST_STREAM_ID:
            raise Unavailable("call", f"{service}/{method}", "stream ids are used up", hint="connect anew")
        self._step(stream, kind)
        self._next_id += 2
        flags = _REQUEST_FLAGS[kind]
        if kind is Kind.OPEN and not payload:
            flags |= NO_DATA  # without it Rust's server takes the empty payload for a first message
        return stream, frames.pack(stream, frames.REQUEST, flags, data)

    def restore(self, live: Iterable[int], next_id: int) -> None:
        """Before the first frame: go on from where another end of this connection was. ``live``: unary calls under way."""
        self._streams.update(dict.fromkeys(live, State.UNARY))
        self._next_id = next_id

    def forget(self, stream: int) -> None:
        """The caller has given up: what still arrives for the stream is dropped. ttrpc cannot tell the server."""
        if stream in self._streams:
            self._move(stream, State.ABANDONED)

    # Sending: server

    def send_reply(self, stream: int, payload: bytes) -> bytes:
        """The successful end of a unary or client-streaming call."""
        return self._respond(stream, Response(None, payload))

    def send_status(self, stream: int, status: Status) -> bytes:
        """The failed end of any call."""
        return self._respond(stream, Response(status))

    def _respond(self, stream: int, response: Response) -> bytes:
        self._step(stream, Kind.RESPONSE)
        return _pack_response(stream, response)

    # Sending: both

    def send_data(self, stream: int, data: bytes) -> bytes:
        """One message. Raises ResourceExhausted when it is too large; the stream goes on."""
        _check_size(f"stream {stream}", data)
        self._step(stream, Kind.DATA)
        return frames.pack(stream, frames.DATA, 0, data)

    def send_end(self, stream: int) -> bytes:
        """Our end of the stream. A frame of its own, for Go's server refuses an end that carries a message."""
        self._step(stream, Kind.LAST)
        return frames.pack(stream, frames.DATA, REMOTE_CLOSED | NO_DATA, b"")

    # State

    def _step(self, stream: int, kind: Kind) -> None:
        state = self.state(stream)
        after = TRANSITIONS.get((self.role, state, kind))
        if after is None:
            raise OutOfOrder(f"{self.role.name} cannot send {kind.name} on stream {stream}, which is {state.name}")
        self._move(stream, after)

    def _move(self, stream: int, state: State) -> None:
        if state in _LIVE:
            self._streams[stream] = state
            return
        self._streams.pop(stream, None)
        if state is not _LINGERING[self.role]:
            # Ended; or SERVER_DONE seen by the client, which says nothing more on a stream that the server has ended.
            self._lingering.pop(stream, None)
            return
        self._lingering[stream] = state
        if len(self._lingering) > MAX_LINGERING:
            del self._lingering[next(iter(self._lingering))]


_RECEIVE: Final[dict[Kind, Callable[[Connection, Frame, Kind], Event]]] = {
    Kind.CALL: Connection._receive_request,
    Kind.OPEN: Connection._receive_request,
    Kind.ASK: Connection._receive_request,
    Kind.RESPONSE: Connection._receive_response,
    Kind.DATA: Connection._receive_data,
    Kind.LAST: Connection._receive_data,
}


def _status(code: Code, message: str) -> Status:
    return Status(code, f"ttrpc: {message}")


def _check_size(what: str, data: bytes) -> None:
    if len(data) > MAX_DATA:
        raise ResourceExhausted("send", what, f"{len(data)} bytes, ttrpc carries at most {MAX_DATA}")


def _pack_response(stream: int, response: Response) -> bytes:
    data = envelope.encode_response(response)
    if len(data) > MAX_DATA:
        data = envelope.encode_response(Response(_shortened(response, len(data))))
    return frames.pack(stream, frames.RESPONSE, 0, data)


def _shortened(response: Response, size: int) -> Status:
    """What to say instead of a response that no frame can carry."""
    if response.status is None:
        return _status(Code.RESOURCE_EXHAUSTED, f"a reply of {size} bytes, ttrpc carries at most {MAX_DATA}")
    return Status(response.status.code, response.status.message[:MAX_STATUS_TEXT])
