"""Standard streams that outlive the daemon: descriptors and the bytes on their way are held by the keeper as well.

How bytes are held is in `pipes`. A file is written as always: its reader does not notice a gap in time, but bytes that were on
their way when a daemon died may be lost.
"""

import asyncio
import hashlib
import logging
import os
from collections.abc import Callable
from typing import Final, NamedTuple, TypeVar
from urllib.parse import urlsplit

from kata_shimd.durable import memory
from kata_shimd.durable.keeper import Keeper
from kata_shimd.durable.memory import new
from kata_shimd.durable.pipes import HEAD, InPipe, OutPipe, owner_of
from kata_shimd.errors import HostFailed
from kata_shimd.host.stdio import FifoSource, PipeSink, readable, writable
from kata_shimd.pod.ports import Sink, Source, Streams
from kata_shimd.pod.values import Chunk, Stdio, Taken

_log = logging.getLogger(__name__)
StreamT = TypeVar("StreamT")

#: One splice from a FIFO, one write to the guest.
CHUNK: Final = 64 << 10
#: Reading from a FIFO pauses while the guest has not taken this much.
_PIPE: Final = "-pipe"


class _Key(NamedTuple):
    """Which stream of which process. Its names are found by the next daemon without being told."""

    direction: str
    container_id: str
    exec_id: str
    uri: str

    @property
    def names(self) -> tuple[str, str]:
        """The name of its own, and the one that versions before gave to whatever has this URI."""
        return f"{self.direction}-{self._hash('/'.join(self))}", f"{self.direction}-{self._hash(self.uri)}"

    @property
    def owner(self) -> int:
        """Never 0; the container is in its upper half."""
        return _half(self.container_id) << 32 | _half("/".join(self)) | 1

    @staticmethod
    def _hash(text: str) -> str:
        return hashlib.sha256(text.encode()).hexdigest()[:24]


def _half(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)


class _Left(NamedTuple):
    """A stream as an earlier daemon left it, opened by whatever path, and perhaps gone from there."""

    name: str
    fd: int
    memory: int


class KeptStreams:
    """The domain's `Streams`: opens through ``inner`` what no earlier daemon has left, and has the keeper hold it.

    Two processes may name the same FIFO, file or logger; what one has open is never taken for the other's.
    """

    def __init__(self, inner: Streams, keeper: Keeper) -> None:
        self._inner, self._keeper = inner, keeper
        #: The names of what this daemon has open, which is no earlier one's any more.
        self._ours: set[str] = set()

    # --- the process begins ------------------------------------------------------------------------------------------

    def open_source(self, container_id: str, exec_id: str, uri: str) -> Source | None:
        key = _Key("in", container_id, exec_id, uri)
        return self._left_source(key) or self._new_source(key, self._inner.open_source(container_id, exec_id, uri))

    async def open_sinks(
        self, container_id: str, exec_id: str, stdout: str, stderr: str
    ) -> tuple[Sink | None, Sink | None]:
        """What an earlier daemon died over is gone on with. Of a logger half of whose pipes are held nothing has been made yet
        but its start: it comes to its end, and another begins."""
        keys = _sink_keys(container_id, exec_id, stdout, stderr)
        out, err = map(self._left_sink, keys)
        if urlsplit(stdout).scheme == "binary":
            if out and err:
                return out, err
            for half in filter(None, (out, err)):
                half.close()
            out = err = None
        names = "" if out else stdout, "" if err else stderr
        new = await self._inner.open_sinks(container_id, exec_id, *names)
        return out or self._new_sink(keys[0], new[0]), err or self._new_sink(keys[1], new[1])

    async def settle(self, container_id: str) -> None:
        """Also what an earlier daemon had open, and nobody has taken up, comes to its end."""
        for name in self._keeper.names():
            stream = name.removesuffix(_PIPE)
            if stream != name and stream not in self._ours and self._owner(stream) >> 32 == _half(container_id):
                self._drop(stream)
                self._drop(name)
        await self._inner.settle(container_id)

    def _drop(self, name: str) -> None:
        fd = self._keeper.held(name)
        if fd is not None:
            self._keeper.release(name)
            os.close(fd)

    # --- the process has begun ---------------------------------------------------------------------------------------

    async def take_up(
        self, container_id: str, exec_id: str, stdio: Stdio
    ) -> tuple[Source | None, Sink | None, Sink | None]:
        """What is held, by the descriptors; of the rest, what has a name still."""
        source_key = _Key("in", container_id, exec_id, stdio.stdin)
        keys = _sink_keys(container_id, exec_id, stdio.stdout, stdio.stderr)
        source = _or_none(self._left_source, source_key)
        out, err = (_or_none(self._left_sink, key) for key in keys)
        rest = Stdio(
            "" if source else stdio.stdin, "" if out else stdio.stdout, "" if err else stdio.stderr, stdio.terminal
        )
        more = await self._inner.take_up(container_id, exec_id, rest)
        return (
            source or self._new_source(source_key, more[0]),
            out or self._new_sink(keys[0], more[1]),
            err or self._new_sink(keys[1], more[2]),
        )

    def has_left(self, container_id: str, exec_id: str, stdio: Stdio) -> bool:
        keys = _sink_keys(container_id, exec_id, stdio.stdout, stdio.stderr)
        return any(self._held(key) is not None for key in keys)

    # --- what is held ------------------------------------------------------------------------------------------------

    def _held(self, key: _Key) -> str | None:
        """The name under which an earlier daemon has left a stream."""
        for name in key.names:
            if name not in self._ours and self._keeper.held(name) is not None and self._owner(name) in (0, key.owner):
                return name
        return None

    def _owner(self, name: str) -> int:
        memory = self._keeper.held(name + _PIPE)
        return 0 if memory is None else owner_of(memory)

    def _left(self, key: _Key) -> _Left | None:
        name = self._held(key) if key.uri else None
        fd = self._keeper.held(name) if name is not None else None
        if name is None or fd is None:
            return None
        memory = self._keeper.held(name + _PIPE)
        if memory is None:
            memory = new(HEAD)
            self._keeper.hold(name + _PIPE, memory)
        self._ours.add(name)
        return _Left(name, fd, memory)

    def _left_source(self, key: _Key) -> Source | None:
        if (left := self._left(key)) is None:
            return None
        return KeptSource(FifoSource(left.fd), InPipe(left.memory, owner=key.owner), self._held_as(left.name))

    def _left_sink(self, key: _Key) -> Sink | None:
        if (left := self._left(key)) is None:
            return None
        return KeptSink(PipeSink(left.fd), OutPipe(left.memory, owner=key.owner), self._held_as(left.name))

    def _new_source(self, key: _Key, source: Source | None) -> Source | None:
        if not isinstance(source, FifoSource):
            return source
        pipe = InPipe(new(HEAD), owner=key.owner)
        return KeptSource(source, pipe, self._hold(key, source.fileno(), pipe.fd))

    def _new_sink(self, key: _Key, sink: Sink | None) -> Sink | None:
        if not isinstance(sink, PipeSink):
            return sink
        pipe = OutPipe(new(HEAD), owner=key.owner)
        return KeptSink(sink, pipe, self._hold(key, sink.fileno(), pipe.fd))

    def _hold(self, key: _Key, fd: int, memory: int) -> "_Held":
        """The stream last: one that is held has its memory, and that says whose it is."""
        own, before = key.names
        name = before if self._keeper.held(before) is None else own
        self._ours.add(name)
        self._keeper.hold(name + _PIPE, memory)
        self._keeper.hold(name, fd)
        return self._held_as(name)

    def _held_as(self, name: str) -> "_Held":
        return _Held(self._keeper, name, self._ours)


def _or_none(take: Callable[[_Key], StreamT | None], key: _Key) -> StreamT | None:
    try:
        return take(key)
    except (OSError, HostFailed) as error:
        _log.error("%s of %s/%s cannot be taken up: %s", key.direction, key.container_id, key.exec_id, error)
        return None


def _sink_keys(container_id: str, exec_id: str, stdout: str, stderr: str) -> tuple[_Key, _Key]:
    return _Key("out", container_id, exec_id, stdout), _Key("err", container_id, exec_id, stderr or stdout)


def consumed(keeper: Keeper) -> set[int]:
    """The agent's calls whose bytes are in the memory of some stream."""
    calls = set()
    for name in keeper.names():
        if name.endswith(_PIPE) and (fd := keeper.held(name)) is not None:
            pipe = OutPipe(os.dup(fd))
            calls.add(pipe.call)
            pipe.close()
    return calls


class _Held:
    """A stream as the keeper has it; lets go of it, once."""

    def __init__(self, keeper: Keeper, name: str, ours: set[str]) -> None:
        self._keeper, self._name, self._ours = keeper, name, ours
        self.is_open = True

    def let_go(self) -> bool:
        was, self.is_open = self.is_open, False
        if was:
            self._keeper.release(self._name)
            self._keeper.release(self._name + _PIPE)
            self._ours.discard(self._name)
        return was


class KeptSource:
    """stdin."""

    def __init__(self, source: FifoSource, pipe: InPipe, held: _Held) -> None:
        self._source, self._pipe, self._held = source, pipe, held

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
        if self._held.let_go():
            self._source.close()
            self._pipe.close()


class KeptSink:
    """stdout or stderr; the domain's `KeepingSink`."""

    def __init__(self, sink: PipeSink, pipe: OutPipe, held: _Held) -> None:
        self._sink, self._pipe, self._held = sink, pipe, held

    async def write(self, data: bytes) -> None:
        self.keep(data)
        while self.waiting:
            await self.hand_on()

    def keep(self, data: bytes) -> None:
        if not self._held.is_open:
            return
        try:
            self._pipe.put(data, data.call if isinstance(data, Chunk) else 0)
        except HostFailed as error:
            memory.leave(error)

    @property
    def waiting(self) -> int:
        return self._pipe.waiting if self._held.is_open else 0

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
        if self._held.is_open:
            self._pipe.drop()

    def close(self) -> None:
        if self._held.let_go():
            self._sink.close()
            self._pipe.close()
