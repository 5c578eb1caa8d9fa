"""Standard streams that stay open when the daemon dies: the keeper holds them too, so that nobody at the other end notices."""

import hashlib

from kata_shimd.durable.keeper import Keeper
from kata_shimd.pod.ports import Sink, Source, Streams


class KeptStreams:
    """The domain's `Streams`: opens through ``inner``, and has the keeper hold what can be held."""

    def __init__(self, inner: Streams, keeper: Keeper) -> None:
        self._inner, self._keeper = inner, keeper

    def open_source(self, uri: str) -> Source | None:
        source = self._inner.open_source(uri)
        return source if source is None else _KeptSource(source, _Hold(self._keeper, uri, "in", source))

    async def open_sinks(self, container_id: str, stdout: str, stderr: str) -> tuple[Sink | None, Sink | None]:
        out, err = await self._inner.open_sinks(container_id, stdout, stderr)
        return self._kept(out, stdout), self._kept(err, stderr)

    def _kept(self, sink: Sink | None, uri: str) -> Sink | None:
        return sink if sink is None else _KeptSink(sink, _Hold(self._keeper, uri, "out", sink))


class _Hold:
    """The keeper's hold on one stream, under a name that the next daemon finds by itself. A file needs none."""

    def __init__(self, keeper: Keeper, uri: str, direction: str, stream: object) -> None:
        self._keeper = keeper
        self._name = f"{direction}-{hashlib.sha256(uri.encode()).hexdigest()[:24]}"
        fileno = getattr(stream, "fileno", None)
        if fileno is not None:
            keeper.hold(self._name, fileno())

    def release(self) -> None:
        self._keeper.release(self._name)


class _KeptSource:
    def __init__(self, source: Source, hold: _Hold) -> None:
        self._source, self._hold = source, hold

    async def read(self) -> bytes:
        return await self._source.read()

    def end(self) -> None:
        self._source.end()

    def close(self) -> None:
        self._hold.release()
        self._source.close()


class _KeptSink:
    def __init__(self, sink: Sink, hold: _Hold) -> None:
        self._sink, self._hold = sink, hold

    async def write(self, data: bytes) -> None:
        await self._sink.write(data)

    def close(self) -> None:
        self._hold.release()
        self._sink.close()
