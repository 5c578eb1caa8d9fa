"""Bytes in and out of a non-blocking descriptor, driven by the event loop's readiness callbacks.

`FrameSource` and `FrameSink` are the only places that read or write a ttrpc descriptor, and they know nothing of frames.
asyncio's transports and StreamReader hide the moment of reception and keep buffers of their own; here one `os.read` is one
call of ``receive``, so a source that receives and journals in a single system call can take this one's place (the
`source` and `sink` arguments of `Server`). What must never happen: the source waiting for a handler or for the sink,
which is how two peers that both only write come to a standstill (containerd.md §3.5).
"""

import asyncio
import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ..errors import ShimError, Unavailable

READ_SIZE: Final = 64 << 10
_MAX_IOV: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one connection may cost. Sizes in bytes, times in seconds."""

    max_data: int = 4 << 20  # of one frame
    max_streams: int = 4096  # calls at once
    stream_messages: int = 16 << 10  # received on one stream and not yet taken; one read can bring READ_SIZE / 10
    stream_bytes: int = 8 << 20
    write_high: int = 1 << 20  # unsent: above it, streams and callers wait
    write_low: int = 256 << 10  # unsent: below it, they go on
    write_max: int = 32 << 20  # unsent: above it, the peer is taken for stuck
    stall: float = 30.0  # with something to send and nothing taken, the peer is taken for stuck


class FrameSource:
    """Hands on what arrives on ``fd``: ``receive(bytes)``, and once, at the end, ``ended(None or the error)``."""

    def __init__(self, fd: int, receive: Callable[[bytes], None], ended: Callable[[OSError | None], None]) -> None:
        self._fd = fd
        self._receive = receive
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._open = False
        self._more: asyncio.Handle | None = None

    def start(self) -> None:
        self._open = True
        self._loop.add_reader(self._fd, self._ready)

    def close(self) -> None:
        """Hear no more. The descriptor belongs to someone else, who closes it afterwards."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._fd)
        if self._more is not None:
            self._more.cancel()
            self._more = None

    def _ready(self) -> None:
        # One read per turn of the loop: a busy peer must not keep the others from theirs. But read on until nothing is there:
        # uvloop's library tells a reset connection once and then watches it no more, whatever is still to be read of it.
        if self._more is not None:
            self._more.cancel()
            self._more = None
        try:
            data = self._read()
        except BlockingIOError:
            return
        except OSError as error:
            self._end(error)
            return
        if data:
            self._more = self._loop.call_soon(self._ready)
            self._receive(data)
        else:
            self._end(None)

    def _read(self) -> bytes:
        return os.read(self._fd, READ_SIZE)

    def _end(self, error: OSError | None) -> None:
        self.close()
        self._ended(error)


class FrameSink:
    """Sends bytes in order without ever blocking: at once if the descriptor takes them, else from a queue.

    ``broken(error)`` is called at most once, when the peer is gone, has taken nothing for `Limits.stall` seconds, or has
    left more than `Limits.write_max` bytes lying. From then on writes vanish.
    """

    def __init__(self, fd: int, limits: Limits, broken: Callable[[ShimError], None]) -> None:
        self._fd = fd
        self._limits = limits
        self._broken = broken
        self._loop = asyncio.get_running_loop()
        self._queue: deque[memoryview] = deque()
        self._queued = 0
        self._taken = 0  # bytes that the descriptor has ever taken
        self._since_turn = 0  # bytes written since a sender last gave the others a turn
        self._corked = False
        self._waiting = False  # for the descriptor to become writable
        self._stall: asyncio.TimerHandle | None = None
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []
        self._error: ShimError | None = None

    @property
    def congested(self) -> bool:
        return self._queued > self._limits.write_high

    def cork(self) -> None:
        """Hold writes back until `uncork`, so that the answers to one read leave in one write."""
        self._corked = True

    def uncork(self) -> None:
        self._corked = False
        if self._queued and not self._waiting:
            self._flush()

    def write(self, data: bytes) -> None:
        if self._error is not None:
            return
        if self._queued > self._limits.write_max:
            self._break(Unavailable("send", cause=f"the peer has left {self._queued} bytes lying"))
            return
        self._put(data)
        self._queued += len(data)
        self._since_turn += len(data)
        if not (self._corked or self._waiting):
            self._flush()

    async def drained(self) -> None:
        """Wait until there is room again; give the others a turn now and then even so, for a sender that never has to wait
        would keep the loop to itself. Raises Unavailable when the connection breaks meanwhile."""
        if self.congested:
            await self._below(self._limits.write_low)
        elif self._since_turn > READ_SIZE:
            self._since_turn = 0
            await asyncio.sleep(0)

    async def flushed(self) -> None:
        """Wait until the descriptor has taken everything. Raises Unavailable when the connection breaks meanwhile."""
        if self._queued:
            await self._below(0)

    def close(self, error: ShimError) -> None:
        """Send no more; those who wait for room get ``error``."""
        if self._error is None:
            self._error = error
        self._idle()
        self._queue.clear()
        self._queued = 0
        self._wake()

    async def _below(self, level: int) -> None:
        future: asyncio.Future[None] = self._loop.create_future()
        self._waiters.append((level, future))
        await future
        if self._error is not None:
            raise Unavailable("send", cause=str(self._error))

    def _flush(self) -> None:
        try:
            while self._queued:
                sent = self._send()
                if not sent:
                    break
                self._forget(sent)
        except OSError as error:
            self._break(_gone(error))
            return
        if self._queued:
            self._wait()
        else:
            self._idle()
        if self._waiters:
            self._wake()

    def _put(self, data: bytes) -> None:
        self._queue.append(memoryview(data))

    def _send(self) -> int:
        try:
            if len(self._queue) == 1:
                return os.write(self._fd, self._queue[0])
            return os.writev(self._fd, [self._queue[i] for i in range(min(len(self._queue), _MAX_IOV))])
        except BlockingIOError:
            return 0

    def _forget(self, sent: int) -> None:
        self._queued -= sent
        self._taken += sent
        self._drop(sent)

    def _drop(self, sent: int) -> None:
        while sent:
            first = self._queue[0]
            if len(first) > sent:
                self._queue[0] = first[sent:]
                return
            sent -= len(first)
            self._queue.popleft()

    def _wait(self) -> None:
        if not self._waiting:
            self._waiting = True
            self._loop.add_writer(self._fd, self._flush)
            self._watch()

    def _idle(self) -> None:
        if self._waiting:
            self._waiting = False
            self._loop.remove_writer(self._fd)
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _watch(self) -> None:
        self._stall = self._loop.call_later(self._limits.stall, self._check_stall, self._taken)

    def _check_stall(self, taken: int) -> None:
        if taken == self._taken:
            cause = f"the peer has taken nothing for {self._limits.stall:g} s, {self._queued} bytes are waiting"
            self._break(Unavailable("send", cause=cause))
        else:
            self._watch()

    def _wake(self) -> None:
        still = []
        for level, future in self._waiters:
            if self._queued > level:
                still.append((level, future))
            elif not future.done():
                future.set_result(None)
        self._waiters = still

    def _break(self, error: ShimError) -> None:
        self.close(error)
        self._broken(error)


def _gone(error: OSError) -> Unavailable:
    gone = Unavailable("send", cause=error.strerror or str(error))
    gone.__cause__ = error
    return gone
