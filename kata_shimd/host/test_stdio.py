"""FIFOs: nothing waits for a client, nothing is lost when it comes late or comes back. On both loops."""

import asyncio
import os
import stat
import threading
from pathlib import Path

import pytest
import uvloop

from kata_shimd.errors import InvalidArgument
from kata_shimd.host.stdio import FifoSink, FifoSource, HostStreams


async def no_logger(_container_id, uri):
    return ("logger of", uri)


async def no_loggers(_container_id):
    pass


STREAMS = HostStreams(no_logger, no_loggers)


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request):
    factory = asyncio.SelectorEventLoop if request.param == "asyncio" else uvloop.Loop

    def runner(work):
        with asyncio.Runner(loop_factory=factory) as loop:
            return loop.run(work)

    return runner


@pytest.fixture
def fifo(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    return tmp_path / "fifo"


def in_thread(work):
    results = []
    thread = threading.Thread(target=lambda: results.append(work()), daemon=True)
    thread.start()
    return thread, results


def test_more_than_the_pipe_holds_reaches_a_reader_byte_for_byte(run, fifo):
    data = os.urandom(1 << 20)
    thread, results = in_thread(fifo.read_bytes)

    async def write():
        sink = FifoSink(fifo)
        await sink.write(data)
        sink.close()

    run(write())
    thread.join(10)
    assert results == [data]


def test_sink_opens_without_a_reader_and_survives_its_restart(run, fifo):
    async def work():
        sink = FifoSink(fifo)
        os.close(os.open(fifo, os.O_RDONLY | os.O_NONBLOCK))
        await sink.write(b"still here")
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        try:
            assert os.read(reader, 100) == b"still here"
        finally:
            os.close(reader)
            sink.close()

    run(work())


def test_source_ends_only_when_told_and_after_all_is_read(run, fifo):
    async def work():
        source = FifoSource.at(fifo)
        writer = os.open(fifo, os.O_WRONLY)
        os.write(writer, b"all of it")
        os.close(writer)
        source.end()
        assert await source.read() == b"all of it"
        assert await source.read() == b""
        source.close()

    run(work())


def test_a_client_that_goes_is_not_the_end(run, fifo):
    async def work():
        source = FifoSource.at(fifo)
        os.close(os.open(fifo, os.O_WRONLY))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await source.read()
        source.close()

    run(work())


def test_end_wakes_a_waiting_reader(run, fifo):
    async def work():
        source = FifoSource.at(fifo)
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(source.read())
            await asyncio.sleep(0)
            source.end()
            assert await reading == b""
        source.close()

    run(work())


def test_closing_leaves_no_fd(run, fifo):
    async def work():
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(10):
            source, sink = FifoSource.at(fifo), FifoSink(fifo)
            source.close()
            sink.close()
            source.close()
            sink.close()
        assert len(list(Path("/proc/self/fd").iterdir())) == before

    run(work())


async def test_a_file_is_readable_whatever_the_umask_and_one_that_is_there_stays_as_it_is(tmp_path):
    """The daemon's umask is 077; log collectors are not root."""
    made, there = tmp_path / "a" / "b" / "log", tmp_path / "there"
    there.touch(mode=0o600)
    before = os.umask(0o077)
    try:
        for path in (made, made, there):
            for sink in await STREAMS.open_sinks("c", "", f"file://{path}", ""):
                sink.close()
    finally:
        os.umask(before)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (made, made.parent, made.parent.parent, there)]
    assert modes == [0o644, 0o755, 0o755, 0o600]


async def test_a_fifo_as_a_file_is_refused_and_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(InvalidArgument, match="fifo"):
        await STREAMS.open_sinks("c", "", f"file://{tmp_path}/fifo", "")


async def test_file_uri_takes_both_streams(tmp_path):
    out, err = await STREAMS.open_sinks("c", "", f"file://{tmp_path}/deep/log", "")
    await out.write(b"out\n")
    await err.write(b"err\n")
    out.close()
    err.close()
    assert (tmp_path / "deep" / "log").read_bytes() == b"out\nerr\n"


@pytest.mark.parametrize("uri", ["npipe:///x", "relative", "/no/such/fifo"])
async def test_bad_paths_are_refused_by_name(uri):
    with pytest.raises(InvalidArgument, match="open stdio"):
        await STREAMS.open_sinks("c", "", uri, "")


async def test_a_plain_file_is_no_fifo(tmp_path):
    (tmp_path / "f").touch()
    with pytest.raises(InvalidArgument, match="is no FIFO"):
        STREAMS.open_source("c", "", str(tmp_path / "f"))


async def test_binary_uri_goes_to_the_logger():
    assert await STREAMS.open_sinks("c", "", "binary:///log?x=y", "ignored") == ("logger of", "binary:///log?x=y")


async def test_unwanted_streams_are_none():
    assert STREAMS.open_source("c", "", "") is None
    assert await STREAMS.open_sinks("c", "", "", "") == (None, None)
