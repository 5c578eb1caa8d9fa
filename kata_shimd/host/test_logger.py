"""The command of a logging binary's URI."""

import asyncio
import os

import pytest

from kata_shimd.errors import InvalidArgument
from kata_shimd.host.logger import Loggers, arguments
from kata_shimd.host.process import start_time
from kata_shimd.ledger import NAME, Kind, Ledger, container_scope


@pytest.mark.parametrize(
    ("uri", "argv"),
    [
        ("binary:///bin/log", ["/bin/log"]),
        ("binary:///bin/log?id=a&v&x=1", ["/bin/log", "id", "a", "v", "x", "1"]),
        ("binary:///bin/my%20log?a=%2Fb", ["/bin/my log", "a", "/b"]),
    ],
)
def test_path_and_query_become_words(uri, argv):
    assert arguments(uri) == argv


@pytest.mark.parametrize("uri", ["binary://", "binary://host/path", "binary:relative"])
def test_no_absolute_path_is_refused(uri):
    with pytest.raises(InvalidArgument, match="no absolute path"):
        arguments(uri)


class Running:
    """A logger that has been started."""

    returncode, record = None, 0

    def __init__(self) -> None:
        self.ended = asyncio.Event()

    async def wait(self):
        await self.ended.wait()


@pytest.fixture
def ledger(tmp_path):
    (tmp_path / NAME).touch()
    return Ledger(tmp_path)


@pytest.fixture
def loggers(ledger):
    return Loggers(ledger, None, "ns", ready_seconds=1, end_seconds=60)


class Exiting:
    """A logger that could not be run: its descriptors are closed, and its end is not seen yet."""

    def __init__(self, status: int) -> None:
        self.status, self.returncode, self.exiting = status, None, True

    async def wait(self) -> int:
        await asyncio.sleep(0.01)  # later than the pipe's end
        self.returncode = self.status
        return self.status

    def stderr_tail(self, _limit):
        return "gate: /no/such/logger: no such file"


@pytest.mark.parametrize("status", [0, 127])
async def test_a_pipe_that_an_end_has_closed_is_no_readiness(loggers, status):
    read, write = os.pipe()
    os.close(write)
    try:
        if status:
            with pytest.raises(InvalidArgument, match="no such file"):
                await loggers._wait_ready(Exiting(status), read, "binary:///no/such/logger")
        else:  # ready, and done already
            await loggers._wait_ready(Exiting(status), read, "binary:///bin/true")
    finally:
        os.close(read)


async def test_delete_waits_for_the_ends_of_its_own_loggers(loggers):
    mine, other = Running(), Running()
    loggers._remember("c1", mine)
    loggers._remember("c2", other)
    async with asyncio.TaskGroup() as group:
        settling = group.create_task(loggers.settle("c1"))
        await asyncio.sleep(0)
        assert not settling.done()
        mine.ended.set()


async def test_a_logger_that_does_not_end_is_not_waited_for_any_longer(ledger):
    loggers = Loggers(ledger, None, "ns", ready_seconds=1, end_seconds=0.01)
    loggers._remember("c1", Running())
    await asyncio.wait_for(loggers.settle("c1"), 1)
    await asyncio.wait_for(loggers.settle("c1"), 1)


async def test_loggers_that_have_ended_are_forgotten(loggers):
    for _ in range(100):
        ended = Running()
        loggers._remember("c1", ended)
        ended.returncode = 0
    assert len(loggers._running["c1"]) == 1


async def test_a_logger_that_an_earlier_daemon_started_is_waited_for_too(loggers, ledger):
    """It has its input's end, and what is in its pipes still to write."""
    reader, writer = os.pipe()
    logger = await asyncio.create_subprocess_exec("/bin/cat", stdin=reader, stdout=asyncio.subprocess.DEVNULL)
    os.close(reader)
    record = ledger.plan(Kind.PROCESS, scope=container_scope("c1"), what="logger", polite=True, grace_ms=0)
    ledger.made(record, pid=logger.pid, start=start_time(logger.pid))
    async with asyncio.TaskGroup() as group:
        settling = group.create_task(loggers.settle("c1"))
        await asyncio.sleep(0.01)
        assert not settling.done()
        os.close(writer)
    assert await logger.wait() == 0
