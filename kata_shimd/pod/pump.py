"""Stdio between the guest and the host: one pump per stream, back-pressure end to end, no byte lost.

Two rules meet here. *No line is lost*: what a process wrote before its end reaches the host before its streams are closed. *No
exit is held hostage* by a reader that has gone: once the guest has been drained into memory (its pipe is small) the exit may be
told, and what the host has not taken yet stays here until Delete, bounded by lack of progress and never by age.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

from kata_shimd.errors import ShimError
from kata_shimd.pod.ports import KeepingSink, Sink, Source

_log = logging.getLogger(__name__)

#: How much one read asks of the guest, and what its pipes are made to hold: our agent's most. Each read is a round trip, during
#: which the process goes on writing into the pipe.
CHUNK: Final = (1 << 20) - 4096
#: Reading from the guest pauses while this much waits for the host's reader.
HIGH_WATER: Final = 1 << 20
#: After the process has ended its pipe is emptied whatever waits; a guest that has more than this to say is lying.
MAX_DRAIN: Final = 4 << 20
#: What a piece costs beside its bytes, so that a guest that answers byte by byte is bounded all the same.
PIECE: Final = 32


class Output:
    """One stream from the guest to the host.

    `drained` is set when the guest has no more, `closed` when all is handed over, `stalled` once the host's reader has taken
    nothing for ``stall`` seconds: its process may then be waited for before its output is drained.
    """

    def __init__(self, read: Callable[[int], Awaitable[bytes]], sink: Sink | None, *, stall: float) -> None:
        self._read, self._sink, self._stall = read, sink, stall
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._draining = False
        self._eof = False
        self._changed = asyncio.Condition()
        self.taken = 0
        self.drained = asyncio.Event()
        self.stalled = asyncio.Event()
        self.closed = asyncio.Event()

    async def read_guest(self) -> None:
        """Read until the guest's end of stream, or its failure, which is the same to the host's reader."""
        try:
            while data := await self._read(CHUNK):
                if not await self._put(data):
                    break
        except ShimError as error:
            _log.debug("stream ended: %s", error)
        finally:
            self._eof = True
            self.drained.set()
            async with self._changed:
                self._changed.notify_all()

    async def write_host(self) -> None:
        """Hand on to the host's reader; close the stream as soon as everything is handed over, for clients wait for its end."""
        try:
            while data := await self._get():
                if self._sink is not None:
                    await self._sink.write(data)
                self.taken += len(data)
        except OSError as error:
            _log.warning("the reader of a stream is gone: %s", error)
            await self._discard()
        finally:
            self.close()

    def close(self) -> None:
        """Close the host's side; what waits is dropped."""
        if self._sink is not None and not self.closed.is_set():
            self._sink.close()
        self.closed.set()

    def drain(self) -> None:
        """The process has ended: take all that is left in the guest, whatever waits here."""
        self._draining = True
        self.stalled.clear()

    async def _put(self, data: bytes) -> bool:
        async with self._changed:
            self._store(data)
            self._changed.notify_all()
            if self._load() > MAX_DRAIN and self._draining:
                return False
            while self._load() > HIGH_WATER and not self._draining:
                await self._wait_taken()
            self.stalled.clear()
        return True

    def _store(self, data: bytes) -> None:
        self._waiting.append(data)
        self._size += len(data) + PIECE

    def _load(self) -> int:
        """What waits here, in bytes."""
        return self._size

    async def _wait_taken(self) -> None:
        try:
            async with asyncio.timeout(self._stall):
                await self._changed.wait()
        except TimeoutError:
            self.stalled.set()

    async def _get(self) -> bytes:
        async with self._changed:
            while not self._waiting and not self._eof:
                await self._changed.wait()
            if not self._waiting:
                return b""
            data = self._waiting.popleft()
            self._size -= len(data) + PIECE
            self._changed.notify_all()
            return data

    async def _discard(self) -> None:
        """Nobody can read any more: keep the process from blocking on a full pipe."""
        while await self._get():
            pass

    async def wake(self) -> None:
        async with self._changed:
            self._changed.notify_all()


class KeptOutput(Output):
    """An output whose sink keeps what waits, so that it outlives us."""

    def __init__(self, read: Callable[[int], Awaitable[bytes]], sink: KeepingSink, *, stall: float) -> None:
        super().__init__(read, sink, stall=stall)
        self._keeper = sink

    async def write_host(self) -> None:
        try:
            while await self._some():
                self.taken += await self._keeper.hand_on()
                await self.wake()
        except OSError as error:
            _log.warning("the reader of a stream is gone: %s", error)
            await self._discard()
        finally:
            self.close()

    def _store(self, data: bytes) -> None:
        self._keeper.keep(data)

    def _load(self) -> int:
        return self._keeper.waiting

    async def _some(self) -> bool:
        """Wait until something waits to be handed on; False at the end."""
        async with self._changed:
            while not self._keeper.waiting and not self._eof:
                await self._changed.wait()
        return self._keeper.waiting > 0

    async def _discard(self) -> None:
        while await self._some():
            self._keeper.drop()
            await self.wake()


def output_to(read: Callable[[int], Awaitable[bytes]], sink: Sink | None, *, stall: float) -> Output:
    if isinstance(sink, KeepingSink):
        return KeptOutput(read, sink, stall=stall)
    return Output(read, sink, stall=stall)


class Input:
    """stdin from the host to the guest. At its end, or when there is none, the guest's stdin is closed."""

    def __init__(
        self, source: Source | None, write: Callable[[bytes], Awaitable[int]], close: Callable[[], Awaitable[None]]
    ) -> None:
        self._source, self._write, self._close = source, write, close

    async def run(self) -> None:
        """Copy until the end; a process that takes no more (it has ended, or closed its stdin) ends the copying."""
        try:
            while self._source is not None and (data := await self._source.read()):
                await self._write_all(data)
            await self._close()
        except ShimError as error:
            _log.debug("stdin ended: %s", error)
        finally:
            self.close()

    def close(self) -> None:
        if self._source is not None:
            self._source.close()

    async def _write_all(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            taken = await self._write(bytes(view))
            if self._source is not None:
                self._source.took(taken)
            view = view[taken:]

    def end(self) -> None:
        """CloseIO: what is in the FIFO is still copied, then the guest's stdin is closed."""
        if self._source is not None:
            self._source.end()
