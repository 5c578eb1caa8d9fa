"""`FrameSource` and `FrameSink` whose bytes are in a `Tape` before anything is done with them.

A source begins with what an earlier daemon still owed, as if it had just come, with `again` set: whoever acts on it knows that it
may have been acted on before.
"""

import socket
from collections.abc import Callable
from contextvars import ContextVar
from typing import Final

from kata_shimd.durable import memory, replay
from kata_shimd.durable.tape import Tape
from kata_shimd.errors import HostFailed, ShimError
from kata_shimd.ttrpc.channel import FrameSink, FrameSource, Limits

#: Whether the request that is being served was begun by a daemon that died over it.
again: Final[ContextVar[bool]] = ContextVar("again", default=False)

#: A journal that has grown beyond this is relieved of what is answered.
FORGET_ABOVE: Final = 256 << 10
#: A peer that sends so much without a single whole frame, or leaves so much unread, is cut off.
MAX_WEIGHT: Final = 128 << 20


class DurableSource(FrameSource):
    """Receives through the tape."""

    def __init__(
        self, tape: Tape, fd: int, receive: Callable[[bytes], None], ended: Callable[[OSError | None], None]
    ) -> None:
        super().__init__(fd, receive, ended)
        self._tape = tape
        self._sock = socket.socket(fileno=fd)

    def start(self) -> None:
        super().start()
        try:
            self._tape.recover(self._sock)
        except OSError as error:
            self._end(error)
            return
        self._replay()

    def _replay(self) -> None:
        owed = replay.owed(self._tape.received, self._tape.sent)
        if owed.frames or owed.tail:
            token = again.set(True)
            try:
                self._receive(b"".join(owed.frames) + owed.tail)
            finally:
                again.reset(token)

    def close(self) -> None:
        super().close()
        # The descriptor is not ours, so it is not ours to close.
        self._sock.detach()

    def _read(self) -> bytes:
        try:
            data = self._tape.receive(self._sock)
            self._relieve()
        except HostFailed as error:
            memory.leave(error)
        return data

    def _relieve(self) -> None:
        if self._tape.weight < FORGET_ABOVE:
            return
        owed = replay.owed(self._tape.received, self._tape.sent)
        if not owed.tail:
            self._tape.forget(b"".join(owed.frames))
        if self._tape.weight > MAX_WEIGHT:
            raise OSError("the journal of this connection has no room left")


class DurableSink(FrameSink):
    """Sends from the tape. ``barrier`` is called before anything is fixed: what an answer tells of is on record first."""

    def __init__(
        self, tape: Tape, barrier: Callable[[], None], fd: int, limits: Limits, broken: Callable[[ShimError], None]
    ) -> None:
        super().__init__(fd, limits, broken)
        self._tape, self._barrier = tape, barrier
        self._queued = tape.unsent
        if self._queued:
            self._wait()

    def _put(self, data: bytes) -> None:
        self._barrier()
        try:
            self._tape.append(data)
        except HostFailed as error:
            memory.leave(error)

    def _send(self) -> int:
        try:
            return self._tape.send(self._fd)
        except BlockingIOError:
            return 0

    def _drop(self, sent: int) -> None:
        return None
