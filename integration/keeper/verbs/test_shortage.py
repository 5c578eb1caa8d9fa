"""A host without memory for journals and streams, for a moment or for long; and a keeper that hangs.

Memory files are made to fail by a limit on the size of files (EFBIG); a host's own errors, ENOSPC and ENOMEM, go the same way.
"""

import asyncio
import os
import resource
from collections.abc import Callable
from functools import partial

import pytest

from integration.harness.process import Process
from integration.harness.waiting import eventually
from integration.keeper.killing import Stopped
from integration.keeper.verbs.client import PATIENCE, Caller, connected
from integration.keeper.verbs.stage import Stage
from integration.keeper.verbs.test_ends import (
    DEAD,
    finish,
    is_other,
    kill,
    over_a_container,
    state,
    until_gone,
)
from kata_shimd.errors import Unavailable

#: Enough for what is received, and not for what is to be sent, which lies far behind it in the file.
LITTLE = 1 << 20


def limit(process: Process) -> None:
    """No file of this process, or of one that it begins, grows any more."""
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (LITTLE, LITTLE))


def run(stage: Stage, body: Callable[[Caller, "asyncio.Task[int]"], object]) -> None:
    stage.shim.start("pod", **stage.env).ok()
    eventually("the boot", stage.booted, within=PATIENCE)
    over_a_container(stage, body)


def test_memory_that_is_short_for_a_moment_is_a_death_and_nothing_else(stage: Stage) -> None:
    async def body(caller: Caller, ended: "asyncio.Task[int]") -> None:
        for _ in range(3):
            old = stage.pod.process("daemon")
            limit(old)
            assert await state(caller) == 2, "the answer is kept by the next daemon, and is the only one"
            assert is_other(stage, "daemon", old)
            assert "write journal of a connection" in (stage.pod.directory / "daemon.stderr").read_text()
        stage.guest.finish("pod", 3)
        assert await ended == 3
        await finish(stage, caller)

    run(stage, body)
    assert stage.guest.sessions == 1


def test_output_for_which_there_is_no_memory_comes_when_there_is(stage: Stage) -> None:
    """The reader takes nothing until then."""

    async def body(caller: Caller, ended: "asyncio.Task[int]") -> None:
        reader = os.open(stage.root / "init-stdout", os.O_RDONLY | os.O_NONBLOCK)
        writer = os.open(stage.root / "init-stdin", os.O_WRONLY | os.O_NONBLOCK)
        data = os.urandom(20_000)
        daemon = stage.pod.process("daemon")
        resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (4096, 4096))
        os.write(writer, data)
        await asyncio.to_thread(eventually, "another", partial(is_other, stage, "daemon", daemon), within=PATIENCE)
        got = b""
        async with asyncio.timeout(PATIENCE):
            while len(got) < len(data):
                try:
                    got += os.read(reader, 1 << 16)
                except BlockingIOError:
                    await asyncio.sleep(0.01)  # polled, as a FIFO's other end
        assert got == data
        os.close(reader)
        os.close(writer)
        stage.guest.finish("pod", 0)
        assert await ended == 0
        await finish(stage, caller)

    run(stage, body)


def test_memory_that_stays_short_ends_the_pod(stage: Stage) -> None:
    config = stage.root / "configuration.toml"
    config.write_text(config.read_text().replace("keeper_deaths = 1000", "keeper_deaths = 3\nkeeper_seconds = 600"))

    async def body(caller: Caller, ended: "asyncio.Task[int]") -> None:
        limit(stage.pod.process("keeper"))
        limit(stage.pod.process("daemon"))
        with pytest.raises(Unavailable):
            await state(caller)
        assert await ended == DEAD, "and never 0"
        await until_gone(stage)

    run(stage, body)


def test_a_keeper_that_hangs_is_replaced_and_does_not_come_back(stage: Stage) -> None:
    async def body(caller: Caller, ended: "asyncio.Task[int]") -> None:
        hung = stage.pod.process("keeper")
        with Stopped(hung):
            await asyncio.to_thread(eventually, "another", partial(is_other, stage, "keeper", hung), within=PATIENCE)
            async with connected(stage) as another:
                assert await state(Caller(another, stage, 0)) == 2, "new connections are accepted again"
        await asyncio.to_thread(eventually, "its end", lambda: not hung.alive(), within=PATIENCE)
        await kill(stage, "daemon")
        assert await state(caller) == 2
        stage.guest.finish("pod", 5)
        assert await ended == 5
        await finish(stage, caller)

    run(stage, body)
    assert stage.guest.sessions == 1


def test_a_keeper_that_hangs_when_the_daemon_dies_is_a_pause(stage: Stage) -> None:
    """Nobody is there to replace it: calls wait until it goes on."""

    async def body(caller: Caller, ended: "asyncio.Task[int]") -> None:
        async with asyncio.TaskGroup() as group:
            with Stopped(stage.pod.process("keeper")):
                old = stage.pod.process("daemon")
                old.kill()
                waiting = group.create_task(state(caller))
                await asyncio.to_thread(eventually, "its end", lambda: not old.alive(), within=PATIENCE)
                assert not waiting.done()
            assert await waiting == 2
        stage.guest.finish("pod", 5)
        assert await ended == 5
        await finish(stage, caller)

    run(stage, body)


def test_a_keeper_that_cannot_begin_a_daemon_for_a_moment_tries_again(stage: Stage) -> None:
    async def body(caller: Caller, ended: "asyncio.Task[int]") -> None:
        keeper = stage.pod.process("keeper")
        soft, hard = resource.prlimit(keeper.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(keeper.pid, resource.RLIMIT_NOFILE, (3, hard))
        stage.pod.process("daemon").kill()
        said = stage.pod.directory / "keeper.stderr"
        await asyncio.to_thread(eventually, "an attempt", lambda: "Too many open" in said.read_text(), within=PATIENCE)
        resource.prlimit(keeper.pid, resource.RLIMIT_NOFILE, (soft, hard))
        assert await state(caller) == 2
        assert (stage.deaths(), stage.pod.process("keeper")) == (1, keeper)
        stage.guest.finish("pod", 3)
        assert await ended == 3
        await finish(stage, caller)

    run(stage, body)
    assert stage.guest.sessions == 1
