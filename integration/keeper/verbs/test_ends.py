"""What ends while no daemon is there, and who dies besides the daemon: each with its outcome."""

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from integration.harness.process import Process
from integration.harness.waiting import eventually
from integration.keeper.killing import Stopped
from integration.keeper.verbs.client import PATIENCE, Caller, connected
from integration.keeper.verbs.stage import Stage
from kata_shimd import wire
from kata_shimd.api import task, wkt
from kata_shimd.durable.once import MAX_TRIES
from kata_shimd.errors import Unavailable
from kata_shimd.ledger import container_scope, read
from kata_shimd.ttrpc import RpcError

#: For so many seconds nobody comes: much longer than it takes to tell of an end.
AWAY: Final = 2.0

#: What somebody who waits is told by a shim that is dead: nothing, the connection ends.
DEAD: Final = -1


@asynccontextmanager
async def running(stage: Stage) -> AsyncIterator[tuple[Caller, "asyncio.Task[int]"]]:
    """A container that runs, and somebody who waits for its end."""
    async with connected(stage) as client, asyncio.TaskGroup() as group:
        caller = Caller(client, stage, 0)

        async def wait() -> int:
            try:
                reply = await caller.ask("Wait", task.WaitRequest(id="pod"), task.WaitResponse, armed=False)
            except Unavailable:
                return DEAD
            return int(reply.exit_status)

        request = task.CreateTaskRequest(id="pod", bundle=str(stage.bundle), **stage.fifos("init"))
        await caller.ask("Create", request, task.CreateTaskResponse, armed=False)
        ended = group.create_task(wait())
        await caller.ask("Start", task.StartRequest(id="pod"), task.StartResponse, armed=False)
        yield caller, ended
        ended.cancel()


async def state(caller: Caller) -> int:
    return int((await caller.ask("State", task.StateRequest(id="pod"), task.StateResponse, armed=False)).status)


async def finish(stage: Stage, caller: Caller) -> None:
    await caller.ask("Delete", task.DeleteRequest(id="pod"), task.DeleteResponse, armed=False)
    with pytest.raises(Unavailable):
        while True:  # the reply to Shutdown may come, or the connection end before it
            await caller.ask("Shutdown", task.ShutdownRequest(id="pod"), task.DeleteResponse, armed=False)
    await until_gone(stage)


async def until_gone(stage: Stage) -> None:
    await asyncio.to_thread(eventually, "nothing left", lambda: not stage.pod.directory.exists(), within=PATIENCE)


def is_other(stage: Stage, what: str, old: Process) -> bool:
    try:
        return stage.pod.process(what) != old
    except LookupError:
        return False


async def kill(stage: Stage, what: str) -> None:
    """Returns when another is on record."""
    old = stage.pod.process(what)
    await asyncio.to_thread(old.kill)
    await asyncio.to_thread(eventually, f"another {what}", partial(is_other, stage, what, old), within=PATIENCE)


@pytest.fixture
def run(stage: Stage) -> Callable[[Callable[[Caller, "asyncio.Task[int]"], object]], None]:
    """Run a test's body over a container that runs."""
    stage.shim.start("pod", **stage.env).ok()
    eventually("the boot", stage.booted, within=PATIENCE)

    return partial(over_a_container, stage)


def over_a_container(stage: Stage, body) -> None:
    async def whole() -> None:
        async with running(stage) as (caller, ended):
            await body(caller, ended)

    asyncio.run(whole())


def test_a_process_that_ends_while_no_daemon_is_there(stage: Stage, run) -> None:
    async def body(caller: Caller, ended: "asyncio.Task[int]") -> None:
        with Stopped(stage.pod.process("keeper")):
            stage.pod.process("daemon").kill()
            stage.guest.finish("pod", 42)
        assert await ended == 42
        await finish(stage, caller)

    run(body)
    assert [topic for topic in stage.events.topics if "exit" in topic] == ["/tasks/exit"]


@pytest.mark.parametrize(
    ("tells", "asked"), [(True, False), (True, True), (False, True)], ids=["asked late", "asked early", "Kata's agent"]
)
def test_when_a_process_ended_that_no_daemon_saw(stage: Stage, run, tells: bool, asked: bool) -> None:
    """``asked``: its output had ended, so the daemon that died had asked for its end, and the answer waits for the next one. Kata's
    agent tells no time: there it is when the next one hears of it."""
    stage.guest.tells = tells

    async def body(caller: Caller, ended: "asyncio.Task[int]") -> None:
        if asked:
            stage.guest.hush("pod")
            waited_for = partial(stage.guest.is_waited_for, "pod")
            await asyncio.to_thread(eventually, "the question", waited_for, within=PATIENCE)
        with Stopped(stage.pod.process("keeper")):
            stage.pod.process("daemon").kill()
            before = time.time_ns()
            stage.guest.finish("pod", 42)
            await asyncio.sleep(AWAY)
            back = time.time_ns()
        assert await ended == 42
        for method, request, reply in (
            ("Wait", task.WaitRequest(id="pod"), task.WaitResponse),
            ("State", task.StateRequest(id="pod"), task.StateResponse),
        ):
            told = wire.nanoseconds((await caller.ask(method, request, reply, armed=False)).exited_at)
            assert told >= (before if tells else back)
            assert not tells or told < back - AWAY / 2 * 1e9, "nearer to its end than to the next daemon"
        await finish(stage, caller)

    run(body)


def test_a_kill_that_a_daemon_died_over_is_no_failure(stage: Stage, run) -> None:
    """The signal was sent, the process has ended of it, and the guest's answer came to nobody."""

    async def body(caller: Caller, ended: "asyncio.Task[int]") -> None:
        spec = wkt.Any(type_url="process", value=json.dumps({"args": ["y"], "cwd": "/"}).encode())
        request = task.ExecProcessRequest(id="pod", exec_id="more", spec=spec, **stage.fifos("more"))
        await caller.ask("Exec", request, wkt.Empty, armed=False)
        more = {"id": "pod", "exec_id": "more"}
        await caller.ask("Start", task.StartRequest(**more), task.StartResponse, armed=False)
        stage.guest.silent = {"SignalProcess"}
        async with asyncio.TaskGroup() as group:
            kill_it = task.KillRequest(**more, signal=9)
            asked = group.create_task(caller.ask("Kill", kill_it, wkt.Empty, armed=False))
            waited = await caller.ask("Wait", task.WaitRequest(**more), task.WaitResponse, armed=False)
            assert waited.exit_status == 137
            assert not asked.done()
            await kill(stage, "daemon")
        stage.guest.silent = set()
        with pytest.raises(RpcError, match="process has already ended"):
            await caller.ask("Kill", kill_it, wkt.Empty, armed=False)
        assert stage.guest.acts["signal more 9"] == 1
        stage.guest.finish("pod", 0)
        assert await ended == 0
        await finish(stage, caller)

    run(body)


def test_counters_of_what_has_ended_are_the_last_that_were_taken(stage: Stage, run) -> None:
    """Also for a later daemon."""

    async def body(caller: Caller, ended: "asyncio.Task[int]") -> None:
        stage.guest.finish("pod", 0)
        assert await ended == 0
        before = await stats(caller)
        await kill(stage, "daemon")
        assert await stats(caller) == before
        await finish(stage, caller)

    run(body)
    assert stage.guest.counted == 1


async def stats(caller: Caller) -> bytes:
    reply = await caller.ask("Stats", task.StatsRequest(id="pod"), task.StatsResponse, armed=False)
    assert isinstance(reply, task.StatsResponse)
    assert reply.stats is not None
    return bytes(reply.stats.value)


def test_a_create_that_nobody_waits_for_is_undone_by_whichever_daemon(stage: Stage, run) -> None:
    """Its connection ends and is forgotten, and the daemon dies before the guest has answered. The name is free again."""
    bundle, fifos = stage.further("more"), stage.fifos("more")
    create = task.CreateTaskRequest(id="more", bundle=str(bundle), **fifos)

    async def body(caller: Caller, ended: "asyncio.Task[int]") -> None:
        stage.guest.silent = {"CreateContainer"}
        async with connected(stage) as client:
            other = Caller(client, stage, 0)
            with suppress(Unavailable):
                async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
                    asked = group.create_task(other.ask("Create", create, task.CreateTaskResponse, armed=False))
                    begun = partial(lambda: stage.guest.acts["create more"] == 1)
                    await asyncio.to_thread(eventually, "its creation", begun, within=PATIENCE)
                    asked.cancel()
        await asyncio.to_thread(eventually, "its abandonment", partial(is_abandoned, stage, "more"), within=PATIENCE)
        await kill(stage, "daemon")
        stage.guest.silent = set()
        await asyncio.to_thread(eventually, "its undoing", partial(is_undone, stage, "more"), within=PATIENCE)
        await asyncio.to_thread(eventually, "no FIFO", partial(is_closed, stage, "keeper", fifos), within=PATIENCE)
        assert stage.guest.acts["remove more"] == 1
        await caller.ask("Create", create, task.CreateTaskResponse, armed=False)
        await caller.ask("Delete", task.DeleteRequest(id="more"), task.DeleteResponse, armed=False)
        stage.guest.finish("pod", 0)
        assert await ended == 0
        await finish(stage, caller)

    run(body)


def is_abandoned(stage: Stage, name: str) -> bool:
    return f'"removing":["{name}"]' in (stage.pod.directory / "state").read_text()


def is_undone(stage: Stage, name: str) -> bool:
    records = read(stage.pod.directory).live.values()
    return not any(record.scope == container_scope(name) for record in records) and (
        (stage.pod.directory / "state").read_text().rpartition('"removing":')[2].startswith("null")
    )


def test_a_machine_that_ends_while_no_daemon_is_there(stage: Stage, run) -> None:
    async def body(caller: Caller, ended: "asyncio.Task[int]") -> None:
        with Stopped(stage.pod.process("keeper")):
            stage.pod.process("daemon").kill()
            stage.pod.process("qemu").kill()
            stage.guest.die()
        assert await ended == 255
        assert await state(caller) == 3
        await finish(stage, caller)

    run(body)


def test_a_machine_that_cannot_be_taken_over_is_ended_before_its_tasks_are(stage: Stage) -> None:
    """Its monitor does not answer the next daemon. Whoever hears of 255 may begin the task elsewhere: nothing of it runs on."""
    stage.env["KATA_TEST_DEAF"] = "1"
    stage.shim.start("pod", **stage.env).ok()
    eventually("the boot", stage.booted, within=PATIENCE)

    async def body(caller: Caller, ended: "asyncio.Task[int]") -> None:
        machine = stage.pod.process("qemu")
        machine.signal(signal.SIGSTOP)
        stage.pod.process("daemon").kill()
        assert await ended == 255
        assert not machine.alive()
        await finish(stage, caller)

    over_a_container(stage, body)
    assert [topic for topic in stage.events.topics if "exit" in topic] == ["/tasks/exit"]


def test_keepers_and_daemons_that_die_in_turn(stage: Stage, run) -> None:
    async def body(caller: Caller, ended: "asyncio.Task[int]") -> None:
        for _ in range(3):
            await kill(stage, "keeper")
            await kill(stage, "daemon")
            assert await state(caller) == 2
        stage.guest.finish("pod", 5)
        assert await ended == 5
        await finish(stage, caller)

    run(body)
    assert stage.guest.sessions == 1


def test_both_at_once_is_the_death_of_the_shim(stage: Stage, run) -> None:
    async def body(_caller: Caller, ended: "asyncio.Task[int]") -> None:
        keeper, daemon = stage.pod.process("keeper"), stage.pod.process("daemon")
        with Stopped(keeper):
            daemon.kill()
            keeper.kill()
        assert await ended == DEAD

    run(body)
    assert stage.shim.delete("pod").code == 0
    assert not stage.pod.directory.exists()


def test_a_pod_whose_daemons_die_too_fast_is_given_up(stage: Stage) -> None:
    config = stage.root / "configuration.toml"
    config.write_text(config.read_text().replace("keeper_deaths = 1000", "keeper_deaths = 2\nkeeper_seconds = 600"))
    stage.shim.start("pod", **stage.env).ok()
    eventually("the boot", stage.booted, within=PATIENCE)

    async def body(caller: Caller, ended: "asyncio.Task[int]") -> None:
        for _ in range(2):
            await kill(stage, "daemon")
            assert await state(caller) == 2
        stage.pod.process("daemon").kill()
        assert await ended == DEAD
        await until_gone(stage)

    over_a_container(stage, body)


def test_a_daemon_that_dies_while_it_stops_is_finished_for(stage: Stage, run) -> None:
    async def body(caller: Caller, ended: "asyncio.Task[int]") -> None:
        stage.guest.finish("pod", 0)
        assert await ended == 0
        await caller.ask("Delete", task.DeleteRequest(id="pod"), task.DeleteResponse, armed=False)
        stage.arm(1)
        try:
            await caller.ask("Shutdown", task.ShutdownRequest(id="pod"), task.DeleteResponse, armed=False)
        except Unavailable:
            pass
        await until_gone(stage)

    run(body)


def test_an_exec_that_daemons_die_over_is_refused_and_leaves_nothing(stage: Stage, run) -> None:
    """The guest runs it and never says so: each daemon is killed over it with its FIFOs open."""
    more = stage.fifos("more")
    stage.guest.silent = {"ExecProcess"}

    async def body(caller: Caller, ended: "asyncio.Task[int]") -> None:
        spec = wkt.Any(type_url="process", value=json.dumps({"args": ["y"], "cwd": "/"}).encode())
        request = task.ExecProcessRequest(id="pod", exec_id="more", spec=spec, **more)
        await caller.ask("Exec", request, wkt.Empty, armed=False)
        start = task.StartRequest(id="pod", exec_id="more")
        async with asyncio.TaskGroup() as group:
            refused = group.create_task(refusal(caller.ask("Start", start, task.StartResponse, armed=False)))
            for tries in range(MAX_TRIES):
                begun = partial(has_begun, stage, tries, more)
                await asyncio.to_thread(eventually, f"Start, begun again {tries} times", begun, within=PATIENCE)
                await kill(stage, "daemon")
        assert "8 daemons have died over it" in refused.result()
        for what in ("daemon", "keeper"):
            await asyncio.to_thread(eventually, "no FIFO", partial(is_closed, stage, what, more), within=PATIENCE)
        assert stage.guest.acts["exec more"] == stage.guest.acts["signal more 9"] == 1
        assert await state(caller) == 2
        stage.guest.silent = set()
        stage.guest.finish("pod", 0)
        assert await ended == 0
        await finish(stage, caller)

    run(body)


async def refusal(call: Awaitable[object]) -> str:
    with pytest.raises(RpcError) as refused:
        await call
    return str(refused.value)


def has_begun(stage: Stage, tries: int, fifos: dict[str, str]) -> bool:
    """The daemon has every FIFO open, and has begun the request anew as often."""
    counted = (stage.pod.directory / "state").read_text().count('"tries/')
    return counted >= tries and set(fifos.values()) <= links(stage, "daemon")


def is_closed(stage: Stage, what: str, fifos: dict[str, str]) -> bool:
    return not links(stage, what) & set(fifos.values())


def links(stage: Stage, what: str) -> set[str]:
    """What a process has open."""
    found = set()
    for fd in Path(f"/proc/{stage.pod.process(what).pid}/fd").iterdir():
        with suppress(OSError):  # closed meanwhile
            found.add(str(fd.readlink()))
    return found


def test_sigterm_ends_the_pod_of_a_later_daemon(stage: Stage, run) -> None:
    async def body(caller: Caller, ended: "asyncio.Task[int]") -> None:
        await kill(stage, "daemon")
        assert await state(caller) == 2
        stage.pod.process("daemon").signal(signal.SIGTERM)
        await until_gone(stage)
        ended.cancel()

    run(body)
