"""Standard streams that outlive the daemon: descriptors and the bytes on their way are held by the keeper as well.

How bytes are held is in `pipes`. A file is written as always: its reader does not notice a gap in time, but bytes that were on
their way when a daemon died may be lost.
"""

import asyncio
import hashlib
import os
from typing import Final

from kata_shimd.durable import memory
from kata_shimd.durable.keeper import Keeper
from kata_shimd.durable.memory import new
from kata_shimd.durable.pipes import HEAD, InPipe, OutPipe
from kata_shimd.errors import HostFailed
from kata_shimd.host.stdio import FifoSource, FileSink, PipeSink, readable, writable
from kata_shimd.pod.ports import Sink, Source, Streams
from kata_shimd.pod.values import Chunk, Stdio, Taken

#: One splice from a FIFO, one write to the guest.
CHUNK: Final = 64 << 10
#: Reading from a FIFO pauses while the guest has not taken this much.
_PIPE: Final = "-pipe"


class KeptStreams:
    """The domain's `Streams`: opens through ``inner`` what no earlier daemon has left, and has the keeper hold it."""

    def __init__(self, inner: Streams, keeper: Keeper) -> None:
        self._inner, self._keeper = inner, keeper

    def open_source(self, uri: str) -> Source | None:
        name = _name("in", uri)
        source = self._inner.open_source(uri)
        if not isinstance(source, FifoSource):
            return source
        self._keeper.hold(name, source.fileno())
        return KeptSource(source, InPipe(self._pipe(name)), self._keeper, name)

    async def open_sinks(self, container_id: str, stdout: str, stderr: str) -> tuple[Sink | None, Sink | None]:
        names = _name("out", stdout), _name("err", stderr or stdout)
        left = [self._left(name) for name in names]
        if any(left):
            return left[0], left[1]
        out, err = await self._inner.open_sinks(container_id, stdout, stderr)
        return self._kept(out, names[0]), self._kept(err, names[1])

    async def settle(self, container_id: str) -> None:
        await self._inner.settle(container_id)

    def has_left(self, stdio: Stdio) -> bool:
        names = _name("out", stdio.stdout), _name("err", stdio.stderr or stdio.stdout)
        return any(self._keeper.held(name) is not None for name in names)

    def _left(self, name: str) -> Sink | None:
        """The stream as an earlier daemon left it, opened by whatever path, and perhaps gone from there."""
        fd = self._keeper.held(name)
        return None if fd is None else self._kept(PipeSink(fd), name)

    def _kept(self, sink: Sink | None, name: str) -> Sink | None:
        if sink is None or isinstance(sink, FileSink) or not isinstance(sink, PipeSink):
            return sink
        self._keeper.hold(name, sink.fileno())
        return KeptSink(sink, OutPipe(self._pipe(name)), self._keeper, name)

    def _pipe(self, name: str) -> int:
        """The memory of a stream: an earlier daemon's, or a new one."""
        fd = self._keeper.held(name + _PIPE)
        if fd is None:
            fd = new(HEAD)
            self._keeper.hold(name + _PIPE, fd)
        return fd


def consumed(keeper: Keeper) -> set[int]:
    """The agent's calls whose bytes are in the memory of some stream."""
    calls = set()
    for name in keeper.names():
        if name.endswith(_PIPE) and (fd := keeper.held(name)) is not None:
            pipe = OutPipe(os.dup(fd))
            calls.add(pipe.call)
            pipe.close()
    return calls


def _name(direction: str, uri: str) -> str:
    """Found by the next daemon without being told."""
    return f"{direction}-{hashlib.sha256(uri.encode()).hexdigest()[:24]}"


class _Kept:
    """Lets go of a stream everywhere, once."""

    def __init__(self, keeper: Keeper, name: str) -> None:
        self._keeper, self._name = keeper, name
        self._open = True

    def _let_go(self) -> bool:
        was, self._open = self._open, False
        if was:
            self._keeper.release(self._name)
            self._keeper.release(self._name + _PIPE)
        return was


class KeptSource(_Kept):
    """stdin."""

    def __init__(self, source: FifoSource, pipe: InPipe, keeper: Keeper, name: str) -> None:
        super().__init__(keeper, name)
        self._source, self._pipe = source, pipe

    async def read(self) -> bytes:
        """What the guest has not taken; only then more from the FIFO."""
        while not (data := self._pipe.peek(CHUNK)):
            try:
                if not self._pipe.fill(self._source.fileno(), CHUNK):
                    return b""
            except BlockingIOError:
                await readable(self._source.fileno())
            except OSError as error:
                if error.errno in memory.SHORT:
                    memory.leave(HostFailed("keep input", "memfd", error.strerror or ""))
                raise
        return data

    def took(self, count: int) -> None:
        self._pipe.took(count, count.call if isinstance(count, Taken) else 0)

    def end(self) -> None:
        self._source.end()

    def close(self) -> None:
        if self._let_go():
            self._source.close()
            self._pipe.close()


class KeptSink(_Kept):
    """stdout or stderr; the domain's `KeepingSink`."""

    def __init__(self, sink: PipeSink, pipe: OutPipe, keeper: Keeper, name: str) -> None:
        super().__init__(keeper, name)
        self._sink, self._pipe = sink, pipe

    async def write(self, data: bytes) -> None:
        self.keep(data)
        while self.waiting:
            await self.hand_on()

    def keep(self, data: bytes) -> None:
        if not self._open:
            return
        try:
            self._pipe.put(data, data.call if isinstance(data, Chunk) else 0)
        except HostFailed as error:
            memory.leave(error)

    @property
    def waiting(self) -> int:
        return self._pipe.waiting if self._open else 0

    async def hand_on(self) -> int:
        while True:
            try:
                sent = self._pipe.send(self._sink.fileno())
            except BlockingIOError:
                await writable(self._sink.fileno())
            else:
                await asyncio.sleep(0)  # a reader that is quick must not keep the loop to itself
                return sent

    def drop(self) -> None:
        if self._open:
            self._pipe.drop()

    def close(self) -> None:
        if self._let_go():
            self._sink.close()
            self._pipe.close()
