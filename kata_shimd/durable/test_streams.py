"""Which stream is whose: two processes that name the same thing, and what a daemon finds that an earlier one left."""

import asyncio
import os
import socket
from contextlib import suppress

import pytest

from kata_shimd.durable import streams as module
from kata_shimd.durable.keeper import Keeper
from kata_shimd.durable.memory import new
from kata_shimd.durable.pipes import HEAD, OutPipe
from kata_shimd.durable.streams import KeptStreams
from kata_shimd.host.stdio import HostStreams, PipeSink
from kata_shimd.pod.values import Stdio

LOGGER = "binary:///usr/bin/logger?to=/var/log/x"


class Store:
    """The keeper's end: what the next daemon is born with."""

    def __init__(self):
        self.fds = {}
        self.control = self.daemon = None

    def begin(self, fd, _next):
        if self.control is not None:
            self.control.close()
        self.control = socket.socket(fileno=os.dup(fd))
        self.control.setblocking(False)

    def hear(self):
        with suppress(BlockingIOError):
            while True:
                text, fds, _, _ = socket.recv_fds(self.control, 4096, 4)
                if not text:
                    return
                lines = dict(line.split("=", 1) for line in text.decode().splitlines())
                if fds:
                    self._drop(lines["FDNAME"])
                    (self.fds[lines["FDNAME"]],) = fds
                elif "FDSTOREREMOVE" in lines:
                    self._drop(lines["FDNAME"])

    def _drop(self, name):
        if name in self.fds:
            os.close(self.fds.pop(name))

    def born_with(self):
        self.hear()
        return {name: os.dup(fd) for name, fd in self.fds.items()}

    def close(self):
        self.hear()
        self.daemon.keeper.close()
        for fd in self.fds.values():
            os.close(fd)
        self.control.close()


@pytest.fixture
def store():
    made = Store()
    yield made
    made.close()


class Daemon:
    """The streams of one daemon; ``loggers`` has what the loggers it started can read."""

    def __init__(self, store):
        self.store, self.loggers = store, {}
        store.daemon = self
        self.keeper = Keeper(store.begin, lambda *_: None)
        held = store.born_with() if store.control else {}
        self.keeper.start(None, held)
        self.streams = KeptStreams(HostStreams(self._start, self._settle), self.keeper)

    async def _start(self, container_id, _uri):
        (out, out_end), (err, err_end) = os.pipe(), os.pipe()
        self.loggers.setdefault(container_id, []).append((out, err))
        return PipeSink(out_end), PipeSink(err_end)

    async def _settle(self, _container_id):
        pass

    def die(self):
        self.store.hear()
        self.keeper.close()
        for name in self.keeper.names():
            os.close(self.keeper.held(name))


async def test_two_processes_with_one_logger_have_one_each(store):
    daemon = Daemon(store)
    first, _ = await daemon.streams.open_sinks("c1", "", LOGGER, LOGGER)
    second, _ = await daemon.streams.open_sinks("c2", "", LOGGER, LOGGER)
    third, _ = await daemon.streams.open_sinks("c1", "e", LOGGER, LOGGER)
    for sink, text in ((first, b"c1"), (second, b"c2"), (third, b"c1/e")):
        await sink.write(text)
    first.close()
    await second.write(b" again")
    (one, of_exec), (two,) = daemon.loggers["c1"], daemon.loggers["c2"]
    assert [os.read(reader[0], 100) for reader in (one, two, of_exec)] == [b"c1", b"c2 again", b"c1/e"]


@pytest.mark.parametrize("uri", ["/dev/null", "{}/fifo"])
async def test_two_processes_with_one_path_have_it_open_once_each(store, tmp_path, uri):
    uri = uri.format(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    daemon = Daemon(store)
    sources = [daemon.streams.open_source(name, "", uri) for name in ("c1", "c2")]
    sinks = [(await daemon.streams.open_sinks(name, "", uri, ""))[0] for name in ("c1", "c2")]
    assert len({one._source.fileno() for one in sources} | {one._sink.fileno() for one in sinks}) == 4
    assert sources[0].end() is sources[0].close() is sinks[0].close() is None
    await sinks[1].write(b"x")


async def test_each_finds_what_an_earlier_daemon_had_of_its_own(store):
    before = Daemon(store)
    for name in ("c1", "c2", "c3"):
        out, err = await before.streams.open_sinks(name, "", LOGGER, LOGGER)
        out.keep(f"{name} out".encode())
        err.keep(f"{name} err".encode())
    readers = {name: ends for name, (ends,) in before.loggers.items()}
    before.die()
    after = Daemon(store)
    stdio = Stdio("", LOGGER, LOGGER)
    for name in ("c3", "c4", "c1", "c2"):  # in another order, and one that nobody has heard of
        assert after.streams.has_left(name, "", stdio) == (name != "c4")
        _, *sinks = await after.streams.take_up(name, "", stdio)
        if name == "c4":
            assert sinks == [None, None], "a logger is not started again"
            continue
        for sink, reader, text in zip(sinks, readers[name], ("out", "err"), strict=True):
            await sink.hand_on()
            assert os.read(reader, 100) == f"{name} {text}".encode()
    assert after.loggers == {}


async def test_what_this_daemon_has_taken_up_is_not_taken_up_again(store):
    before = Daemon(store)
    await before.streams.open_sinks("c1", "", LOGGER, LOGGER)
    before.die()
    after = Daemon(store)
    _, out, _ = await after.streams.take_up("c1", "", Stdio("", LOGGER, LOGGER))
    assert not after.streams.has_left("c1", "", Stdio("", LOGGER, LOGGER))
    out.close()
    again, _ = await after.streams.open_sinks("c1", "", LOGGER, LOGGER)
    await again.write(b"of the second")
    ((reader, _),) = after.loggers["c1"]
    assert os.read(reader, 100) == b"of the second"


async def test_a_logger_half_of_whose_pipes_are_held_is_begun_anew(store, monkeypatch):
    class Killed(BaseException):
        pass

    def killed(*_):
        raise Killed

    before = Daemon(store)
    holds = iter([before.keeper.hold, before.keeper.hold, killed])
    monkeypatch.setattr(before.keeper, "hold", lambda name, fd: next(holds)(name, fd))
    with pytest.raises(Killed):
        await before.streams.open_sinks("c1", "", LOGGER, LOGGER)
    ((reader, _),) = before.loggers["c1"]
    before.die()
    after = Daemon(store)
    out, err = await after.streams.open_sinks("c1", "", LOGGER, LOGGER)
    assert out is not None
    assert err is not None
    store.hear()
    assert os.read(reader, 1) == b"", "the first one comes to its end"
    assert len(after.loggers["c1"]) == 1


async def test_what_a_version_before_left_under_the_uri_alone_is_found(store, tmp_path):
    os.mkfifo(tmp_path / "out")
    reader = os.open(tmp_path / "out", os.O_RDONLY | os.O_NONBLOCK)
    before = Daemon(store)
    memory, fd = OutPipe(new(HEAD)), os.open(tmp_path / "out", os.O_RDWR | os.O_NONBLOCK)
    memory.put(b"on its way", 7)
    _, name = module._Key("out", "c1", "", str(tmp_path / "out")).names
    before.keeper.hold(name, fd)
    before.keeper.hold(name + "-pipe", os.dup(memory.fd))
    before.die()
    after = Daemon(store)
    _, out, _ = await after.streams.take_up("c1", "", Stdio("", str(tmp_path / "out")))
    await out.hand_on()
    assert os.read(reader, 100) == b"on its way"


async def test_streams_whose_names_are_gone_are_taken_up(store, tmp_path):
    """A client has cleaned up: what is held is read and written all the same."""
    stdio = Stdio(*(str(tmp_path / name) for name in ("in", "out", "err")))
    for path in (stdio.stdin, stdio.stdout, stdio.stderr):
        os.mkfifo(path)
    before = Daemon(store)
    first = before.streams.open_source("c1", "", stdio.stdin)
    await before.streams.open_sinks("c1", "", stdio.stdout, stdio.stderr)
    writer = os.open(stdio.stdin, os.O_WRONLY)
    readers = [os.open(path, os.O_RDONLY | os.O_NONBLOCK) for path in (stdio.stdout, stdio.stderr)]
    first._source.end()
    before.die()
    for path in tmp_path.iterdir():
        path.unlink()
    after = Daemon(store)
    source, out, err = await after.streams.take_up("c1", "", stdio)
    os.write(writer, b"in")
    os.close(writer)
    assert await source.read() == b"in"
    source.took(2)
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        reading = group.create_task(source.read())
        await asyncio.sleep(0)
        assert not reading.done(), "no end of input before the client says so"
        source.end()
    assert reading.result() == b""
    await out.write(b"out")
    await err.write(b"err")
    assert [os.read(reader, 10) for reader in readers] == [b"out", b"err"]


async def test_a_stream_that_cannot_be_had_leaves_the_others(store, tmp_path):
    stdio = Stdio(*(str(tmp_path / name) for name in ("in", "out", "err")))
    os.mkfifo(stdio.stdout)
    source, out, err = await Daemon(store).streams.take_up("c1", "", stdio)
    assert source is err is None
    await out.write(b"x")
