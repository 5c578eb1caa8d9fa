"""A ttrpc client whose calls outlive it.

Requests and replies are in a `Tape`, and the descriptor is held by the keeper, so the peer never notices that the daemon died. The
next daemon asks for what it needs, and where an earlier one had asked for the same, it gets the answer to that: nothing is asked
twice.

*The same*: the same method and request, in the name of the same operation (`operation`) if it changes something. Of several such,
the last: they were asked one after the other.
"""

import asyncio
import socket
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from functools import partial
from typing import Final, NamedTuple

from kata_shimd.durable.channel import MAX_WEIGHT, DurableSink, DurableSource
from kata_shimd.durable.replay import frames_of
from kata_shimd.durable.tape import Tape
from kata_shimd.errors import ShimError
from kata_shimd.ttrpc import envelope
from kata_shimd.ttrpc.client import Client, UnaryCall
from kata_shimd.ttrpc.envelope import Malformed, Metadata, Request
from kata_shimd.ttrpc.frames import HEADER, MAX_DATA, REQUEST, RESPONSE, FrameDecoder, Oversize, pack

#: The request of containerd's that is being carried out, by its durable name; empty outside of any.
operation: Final[ContextVar[str]] = ContextVar("operation", default="")
_OPERATION: Final = "kata-shimd-operation"

#: A journal beyond this is relieved of what is over ...
_FORGET_ABOVE: Final = 1 << 20
#: ... but for replies that were handed over so recently that what follows from them may not be on record.
_SETTLED_SECONDS: Final = 5.0
#: One that is so much beyond what it keeps holds up further calls for that: it can be done only when no frame is half
#: received or half sent, and where streams flow both ways one always is.
_HOLD_ABOVE: Final = 16 << 20
#: Seconds between two looks whether it can be done by now. The frames under way end without us.
_LOOK: Final = 0.002


class Reply(bytes):
    """A reply's payload that knows which call brought it, and whether an earlier daemon had made that call: it may have been there
    for long."""

    call: int
    earlier: bool

    @classmethod
    def of(cls, payload: bytes, call: int, *, earlier: bool) -> "Reply":
        reply = cls(payload)
        reply.call, reply.earlier = call, earlier
        return reply


class Key(NamedTuple):
    """What makes two calls the same."""

    method: str
    what: bytes
    operation: str


class _Call(NamedTuple):
    """A call on the wire: its frame as it was sent, and its reply's when it came."""

    request: bytes
    reply: bytes | None
    settled: float | None


#: ``key(method, payload)``: what of a request counts, or None for one that may be asked any number of times.
KeyOf = Callable[[str, bytes], bytes | None]


class DurableClient(Client):
    """``consumed`` are calls whose replies have had their effect, which nobody may get again."""

    def __init__(
        self,
        sock: socket.socket,
        tape: Tape,
        *,
        barrier: Callable[[], None],
        key_of: KeyOf,
        consumed: Iterable[int],
        on_lost: Callable[[ShimError], None],
    ) -> None:
        self._tape, self._key_of = tape, key_of
        self._log: dict[int, _Call] = {}
        self._claims: dict[Key, tuple[int, UnaryCall]] = {}
        #: The last call of each that come one after the other.
        self._latest: dict[Key, int] = {}
        #: The last call of all: it stays in the log, so that no later daemon gives its number again.
        self._highest = -1
        self._kept = 0
        #: A frame is half received.
        self.is_within_frame = False
        super().__init__(
            sock, on_lost=on_lost, source=partial(_Source, tape, self), sink=partial(DurableSink, tape, barrier)
        )
        used = frozenset(consumed)
        self._claims = {key: claim for key, claim in self._claims.items() if claim[0] not in used}
        for stream in used:
            self._let_go(stream)

    # --- an earlier daemon's calls -----------------------------------------------------------------------------------

    def recall(self) -> bytes:
        """Take up the calls on the tape; the beginning of a frame that is still to come."""
        received, tail = frames_of(self._tape.received)
        sent, _ = frames_of(self._tape.sent)
        requests = {frame.stream: frame.raw for frame in (*received, *sent) if frame.kind == REQUEST}
        replies = {frame.stream: frame.raw for frame in received if frame.kind == RESPONSE}
        self._highest = max(requests, default=-1)
        self._protocol.restore(requests.keys() - replies.keys(), self._highest + 2)
        for stream in sorted(requests):
            self._take_up(stream, requests[stream], replies.get(stream))
        return tail

    def _take_up(self, stream: int, raw: bytes, reply: bytes | None) -> None:
        self._log[stream] = _Call(raw, reply, None)
        try:
            request = envelope.decode_request(_data(raw))
            answer = None if reply is None else envelope.decode_response(_data(reply))
        except Malformed:
            return
        call = UnaryCall(f"{request.service}/{request.method}")
        call.reply.add_done_callback(_looked_at)
        if answer is None:
            self._calls[stream] = call
        else:
            call.answered(answer)
        if (key := self._key(request)) is not None:
            before, self._claims[key] = self._claims.get(key), (stream, call)
            if before is not None:
                self._let_go(before[0])

    def _let_go(self, stream: int) -> None:
        """A call that was answered and that nobody will take up is not kept, or every death would add to what is."""
        known = self._log.get(stream)
        if known is not None and known.reply is not None and stream != self._highest:
            del self._log[stream]

    def _key(self, request: Request) -> Key | None:
        what = self._key_of(request.method, request.payload)
        named = request.metadata.get(_OPERATION, ("",))
        return None if what is None else Key(request.method, what, named[0] if named else "")

    async def _ready(self) -> None:
        await super()._ready()
        while self._error is None and self._tape.weight > 2 * self._kept + _HOLD_ABOVE:
            await asyncio.sleep(_LOOK)
            self.relieve()
        await super()._ready()

    # --- calling -----------------------------------------------------------------------------------------------------

    async def _call(
        self, service: str, method: str, payload: bytes, timeout: float | None, metadata: Metadata
    ) -> bytes:
        tagged = self._tagged(method, metadata)
        key = self._key(Request(service, method, payload, 0, tagged))
        claimed = self._claims.pop(key, None) if key is not None else None
        stream, call = claimed or self._begin(service, method, payload, timeout, tagged)
        self._follows(key, stream)
        try:
            return Reply.of(await call.reply, stream, earlier=claimed is not None)
        finally:
            self._forget(stream)
            call.settle()
            self._settle(stream)

    def _tagged(self, method: str, metadata: Metadata) -> Metadata:
        name = operation.get()
        return {**metadata, _OPERATION: (name,)} if name and method not in UNTAGGED else metadata

    def _sent(self, stream: int, frame: bytes) -> None:
        self._log[stream] = _Call(frame, None, None)
        self._highest = stream

    def _follows(self, key: Key | None, stream: int) -> None:
        """Of a stream's reads and writes each begins when what followed from the one before is on record."""
        if key is None or key.method not in SEQUENTIAL:
            return
        before, self._latest[key] = self._latest.get(key), stream
        if before is not None and before != stream and before != self._highest:
            self._log.pop(before, None)

    def _settle(self, stream: int) -> None:
        if (known := self._log.get(stream)) is not None:
            self._log[stream] = known._replace(settled=asyncio.get_running_loop().time())

    # --- forgetting --------------------------------------------------------------------------------------------------

    def received(self, frames: Iterable[tuple[int, bytes]]) -> None:
        """Replies have come: they belong to the log until what follows from them is on record."""
        for stream, raw in frames:
            if (known := self._log.get(stream)) is not None:
                self._log[stream] = known._replace(reply=raw)

    def relieve(self) -> None:
        """Give back what is over, if this is a moment when no frame is half received."""
        if self.is_within_frame or self._tape.weight < 2 * self._kept + _FORGET_ABOVE:
            return
        recent = asyncio.get_running_loop().time() - _SETTLED_SECONDS
        over = [stream for stream, call in self._log.items() if call.settled is not None and call.settled < recent]
        for stream in over:
            if stream != self._highest:
                del self._log[stream]
        keep = b"".join(call.request + (call.reply or b"") for call in self._log.values())
        self._kept = len(keep)
        self._tape.forget(keep)


#: They go on for longer than any one operation.
SEQUENTIAL: Final = frozenset({"ReadStdout", "ReadStderr", "WriteStdin"})
UNTAGGED: Final = frozenset({"ReadStdout", "ReadStderr", "WriteStdin", "WaitProcess", "GetOOMEvent", "Check"})


class _Source(DurableSource):
    """Receives replies. What an earlier daemon received is not handed on: it is in the claims."""

    def __init__(
        self,
        tape: Tape,
        client: DurableClient,
        fd: int,
        receive: Callable[[bytes], None],
        ended: Callable[[OSError | None], None],
    ) -> None:
        super().__init__(tape, fd, receive, ended)
        self._client, self._decoder = client, FrameDecoder()

    def _replay(self) -> None:
        tail = self._client.recall()
        try:
            self._cut(tail)
        except OSError as error:
            self._end(error)
            return
        if tail:
            self._receive(tail)

    def _read(self) -> bytes:
        data = super()._read()
        self._cut(data)
        self._client.relieve()
        if self._tape.weight > MAX_WEIGHT:
            raise OSError("the journal of this connection has no room left")
        return data

    def _cut(self, data: bytes) -> None:
        """:raises OSError: a frame begins that nobody will take, and its bytes would all be kept"""
        whole = []
        for frame in self._decoder.feed(data):
            if isinstance(frame, Oversize):
                raise OSError(f"the peer sends a frame of {frame.length} bytes, of which the limit is {MAX_DATA}")
            if frame.type == RESPONSE:
                whole.append((frame.stream, pack(*frame)))
        self._client.received(whole)
        self._client.is_within_frame = bool(self._decoder.missing)

    def _relieve(self) -> None:
        """Not before the frames that have just come are in the log."""


def _looked_at(reply: "asyncio.Future[bytes]") -> None:
    """Perhaps nobody ever asks for the same: then its failure is nobody's, and asyncio is not to complain of that."""
    if not reply.cancelled():
        reply.exception()


def _data(raw: bytes) -> bytes:
    return raw[HEADER.size :]
