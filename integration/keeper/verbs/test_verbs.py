"""One container's whole life and an exec's, each verb of it with a daemon that dies at its k-th durable step.

containerd is a client of the test's on one connection. Short form: a few steps; ``KATA_SHIMD_STEPS=60``
takes every one up to the 60th, and goes on from there until no verb has as many.
"""

import asyncio
import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Final

import pytest

from integration.harness.waiting import eventually
from integration.keeper.verbs.client import PATIENCE, SERVICE, Caller, connected
from integration.keeper.verbs.guest import CODE
from integration.keeper.verbs.stage import Stage
from integration.keeper.verbs.test_ends import finish
from integration.keeper.verbs.test_ends import running as over_a_container
from kata_shimd import wire
from kata_shimd.api import task, wkt

ALL: Final = int(os.environ.get("KATA_SHIMD_STEPS", "0"))
BESIDE_STEPS: Final = range(1, ALL + 1) if ALL else (1, 4, 7)
STEPS: Final = range(1, ALL + 1) if ALL else (1, 2, 3, 6, 8, 13, 20, 30)


async def echoed(stage: Stage, name: str, data: bytes) -> bytes:
    """Write to stdin's FIFO, and read as much from stdout's."""
    out = os.open(stage.root / f"{name}-stdout", os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(stage.root / f"{name}-stdin", os.O_WRONLY)
    os.set_blocking(writer, False)
    got, left = b"", memoryview(data)
    try:
        async with asyncio.timeout(PATIENCE):
            while len(got) < len(data):
                try:
                    left = left[os.write(writer, left) :] if left else left
                except BlockingIOError:
                    pass
                try:
                    got += os.read(out, 1 << 16)
                except BlockingIOError:
                    pass
                await asyncio.sleep(0.005)  # both ends are polled: what is tested is at the other ends
        return got
    finally:
        os.close(out)
        os.close(writer)


async def life(stage: Stage, caller: Caller) -> None:
    """Every verb, in the order of a life; asserts what a client would."""
    init, more = stage.fifos("init"), stage.fifos("more")
    await caller.ask(
        "Create", task.CreateTaskRequest(id="pod", bundle=str(stage.bundle), **init), task.CreateTaskResponse
    )
    async with asyncio.TaskGroup() as group:
        ended = group.create_task(caller.ask("Wait", task.WaitRequest(id="pod"), task.WaitResponse, armed=False))
        await caller.ask("Start", task.StartRequest(id="pod"), task.StartResponse)
        stage.arm(caller.k)
        data = os.urandom(30_000)
        assert await echoed(stage, "init", data) == data
        stage.arm(caller.k)
        stage.guest.oom("pod")
        # Told before anything else happens, so the order is one order.
        await asyncio.to_thread(eventually, "the event", lambda: "/tasks/oom" in stage.events.topics, within=PATIENCE)
        spec = wkt.Any(type_url="process", value=json.dumps({"args": ["y"], "cwd": "/"}).encode())
        await caller.do("Exec", task.ExecProcessRequest(id="pod", exec_id="more", spec=spec, **more))
        await caller.ask("Start", task.StartRequest(id="pod", exec_id="more"), task.StartResponse)
        await caller.do("Kill", task.KillRequest(id="pod", exec_id="more", signal=10))
        await caller.do("Kill", task.KillRequest(id="pod", exec_id="more", signal=10))
        await caller.do("Pause", task.PauseRequest(id="pod"))
        state = await caller.ask("State", task.StateRequest(id="pod"), task.StateResponse)
        assert state.status == 4
        await caller.do("Resume", task.ResumeRequest(id="pod"))
        await caller.do("Kill", task.KillRequest(id="pod", exec_id="more", signal=9))
        end = await caller.ask("Wait", task.WaitRequest(id="pod", exec_id="more"), task.WaitResponse)
        assert end.exit_status == 137
        gone = await caller.ask("Delete", task.DeleteRequest(id="pod", exec_id="more"), task.DeleteResponse)
        assert gone.exit_status == 137
        await caller.do("CloseIO", task.CloseIoRequest(id="pod", stdin=True))
        assert (await ended).exit_status == CODE
    gone = await caller.ask("Delete", task.DeleteRequest(id="pod"), task.DeleteResponse)
    assert gone.exit_status == CODE


WANTED: Final = Counter({"create pod": 1, "start pod": 1, "exec more": 1, "signal more 10": 2, "signal more 9": 1})


#: What containerd is told, each once and in this order.
TOPICS: Final = [
    f"/tasks/{topic}"
    for topic in ("create", "start", "oom", "exec-added", "exec-started", "paused", "resumed", "exit", "exit", "delete")
]


def lived(stage: Stage, k: int) -> int:
    """A booted pod's life to its end, with a death at the k-th step of each verb: everything is done once, and told once.

    Returns how many daemons died.
    """

    async def body() -> int:
        async with connected(stage) as client:
            await life(stage, Caller(client, stage, k))
            deaths = stage.deaths()
            # A pod that stops gives its last events two seconds, which a busy host may not have.
            await asyncio.to_thread(
                eventually, "the last event", lambda: len(stage.events.topics) >= len(TOPICS), within=PATIENCE
            )
            stage.die.unlink(missing_ok=True)
            await client.call(SERVICE, "Shutdown", wire.encode(task.ShutdownRequest(id="pod")), timeout=PATIENCE)
            return deaths

    deaths = asyncio.run(body())
    assert stage.guest.acts == WANTED
    assert stage.events.topics == TOPICS
    assert stage.guest.sessions == 1, "the guest never saw a daemon die"
    if not ALL:
        assert deaths >= (5 if k < 10 else 1), "the kills were not where they were meant to be"
    return deaths


@pytest.mark.parametrize("k", STEPS)
def test_every_verb_is_carried_out_once(stage: Stage, k: int) -> None:
    stage.shim.start("pod", **stage.env).ok()
    eventually("the boot", stage.booted, within=PATIENCE)
    lived(stage, k)


async def beside(stage: Stage, caller: Caller) -> None:
    """A further container's life beside the pod's own, and the verbs that the first life has not."""
    # With an input each: a guest's process that has none comes to its end by that, and not by a signal.
    bundle, side, more = stage.further("side"), stage.fifos("side"), stage.fifos("more")
    side.pop("stderr")
    request = task.CreateTaskRequest(id="side", bundle=str(bundle), terminal=True, **side)
    await caller.ask("Create", request, task.CreateTaskResponse)
    await caller.ask("Start", task.StartRequest(id="side"), task.StartResponse)
    assert (await caller.ask("Connect", task.ConnectRequest(id="side"), task.ConnectResponse)).task_pid > 0
    limits = wkt.Any(type_url="resources", value=b'{"cpu": {"shares": 77}}')
    await caller.do("Update", task.UpdateTaskRequest(id="side", resources=limits))
    await caller.do("ResizePty", task.ResizePtyRequest(id="side", width=7, height=9))
    assert (await caller.ask("Stats", task.StatsRequest(id="side"), task.StatsResponse)).stats is not None
    spec = wkt.Any(type_url="process", value=json.dumps({"args": ["y"], "cwd": "/"}).encode())
    await caller.do("Exec", task.ExecProcessRequest(id="side", exec_id="more", spec=spec, **more))
    await caller.ask("Start", task.StartRequest(id="side", exec_id="more"), task.StartResponse)
    assert len((await caller.ask("Pids", task.PidsRequest(id="side"), task.PidsResponse)).processes) == 2
    await caller.do("Kill", task.KillRequest(id="side", signal=10, all=True))
    await caller.do("Kill", task.KillRequest(id="side", exec_id="more", signal=9))
    await caller.ask("Wait", task.WaitRequest(id="side", exec_id="more"), task.WaitResponse)
    await caller.do("Kill", task.KillRequest(id="side", signal=9, all=True))
    assert (await caller.ask("Wait", task.WaitRequest(id="side"), task.WaitResponse)).exit_status == 137
    assert (await caller.ask("Delete", task.DeleteRequest(id="side"), task.DeleteResponse)).exit_status == 137
    await caller.do("Shutdown", task.ShutdownRequest(id="side"))


BESIDE_WANTED: Final = Counter(
    [
        "create pod", "start pod", "create side", "start side", "update side", "resize side 9x7", "exec more",
        "signal side 10", "signal more 10", "signal more 9", "signal side 9", "remove side",
    ]
)  # fmt: skip
BESIDE_TOPICS: Final = [
    f"/tasks/{topic}"
    for topic in (
        "create", "start", "create", "start", "exec-added", "exec-started", "exit", "exit", "delete", "exit", "delete",
    )
]  # fmt: skip


def lived_beside(stage: Stage, k: int) -> int:
    """As `lived`, of the second container; the pod's own begins before any death and ends after the last."""

    async def body() -> int:
        async with over_a_container(stage) as (caller, ended):
            await beside(stage, Caller(caller.client, stage, k))
            deaths = stage.deaths()
            stage.die.unlink(missing_ok=True)
            stage.guest.finish("pod", 0)
            assert await ended == 0
            await finish(stage, caller)
        return deaths

    deaths = asyncio.run(body())
    assert stage.guest.acts == BESIDE_WANTED
    assert stage.events.topics == BESIDE_TOPICS
    assert stage.guest.sessions == 1, "the guest never saw a daemon die"
    if not ALL:
        assert deaths >= 5, "the kills were not where they were meant to be"
    return deaths


@pytest.mark.parametrize("k", BESIDE_STEPS)
def test_a_container_beside_another(stage: Stage, k: int) -> None:
    stage.shim.start("pod", **stage.env).ok()
    eventually("the boot", stage.booted, within=PATIENCE)
    lived_beside(stage, k)


@pytest.mark.skipif(not ALL, reason="the long form")
@pytest.mark.parametrize("live", [lived, lived_beside])
def test_no_step_is_left(live: Callable[[Stage, int], int]) -> None:
    """Each step from the last of the other tests' on, until no verb has that many."""
    for k in count(ALL + 1):
        with tempfile.TemporaryDirectory(prefix="kv") as root:
            stage = Stage(Path(root))
            try:
                stage.shim.start("pod", **stage.env).ok()
                eventually("the boot", stage.booted, within=PATIENCE)
                if not live(stage, k):
                    return
            finally:
                stage.close()


#: A boot has more steps than this left when its daemon says that it is ready.
SURE: Final = 5


@pytest.mark.parametrize("k", STEPS)
def test_a_death_in_the_boot_is_no_failure_of_create(stage: Stage, k: int) -> None:
    stage.shim.start("pod", **stage.env).ok()
    stage.arm(k)

    async def body() -> None:
        async with connected(stage) as client:
            caller = Caller(client, stage, k)
            request = task.CreateTaskRequest(id="pod", bundle=str(stage.bundle))
            await caller.ask("Create", request, task.CreateTaskResponse, armed=False)
            stage.die.unlink(missing_ok=True)
            assert stage.deaths() == 1 or k > SURE, "the kill was not where it was meant to be"
            await caller.ask("Delete", task.DeleteRequest(id="pod"), task.DeleteResponse, armed=False)
            await client.call(SERVICE, "Shutdown", wire.encode(task.ShutdownRequest(id="pod")), timeout=PATIENCE)

    asyncio.run(body())
    assert stage.guest.acts == Counter({"create pod": 1})


def test_the_same_life_without_a_keeper(stage: Stage) -> None:
    """Nothing durable is made, so no step is counted, and nobody dies."""
    config = stage.root / "configuration.toml"
    config.write_text(config.read_text().replace('keeper = "launcher"', 'keeper = "off"'))
    stage.shim.start("pod", **stage.env).ok()

    async def body() -> None:
        async with connected(stage) as client:
            await life(stage, Caller(client, stage, 1))
            assert not (stage.shim.pod("pod") / "state").exists()
            await client.call(SERVICE, "Shutdown", wire.encode(task.ShutdownRequest(id="pod")), timeout=PATIENCE)

    asyncio.run(body())
    assert (stage.guest.acts, stage.guest.sessions) == (WANTED, 1)
    assert stage.events.topics == TOPICS
