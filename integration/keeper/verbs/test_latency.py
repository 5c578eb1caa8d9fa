"""How long a call waits when the daemon dies under it, with and without a spare; ``KATA_SHIMD_KILLS`` deaths are measured."""

import asyncio
import os
import time

import pytest

from integration.harness.process import find
from integration.harness.scale import SCALE
from integration.harness.waiting import eventually
from integration.keeper.verbs.client import PATIENCE, SERVICE, connected
from integration.keeper.verbs.stage import Stage
from kata_shimd import wire
from kata_shimd.api import task
from kata_shimd.ledger import read
from kata_shimd.ttrpc.client import Client

KILLS = int(os.environ.get("KATA_SHIMD_KILLS", "5"))
#: containerd gives State two seconds.
STATE_SECONDS = 2.0


def daemon_of(stage: Stage) -> int:
    return next(r.fields["pid"] for r in read(stage.shim.pod("pod")).live.values() if r.fields.get("what") == "daemon")


async def ask_for_ever(client: Client, seconds: list[float], over: asyncio.Event) -> None:
    request = wire.encode(task.StateRequest(id="pod"))
    while not over.is_set():
        begin = time.monotonic()
        await client.call(SERVICE, "State", request, timeout=PATIENCE)
        seconds.append(time.monotonic() - begin)
        await asyncio.sleep(0.002)


async def kill_and_wait(stage: Stage, seconds: list[float]) -> None:
    """One death, and a while after it in which calls are quick again."""
    before = daemon_of(stage)
    victim = find(before)
    assert victim is not None
    await asyncio.to_thread(victim.kill)
    await asyncio.to_thread(eventually, "another daemon", lambda: daemon_of(stage) != before, within=PATIENCE)
    calls = len(seconds)
    async with asyncio.timeout(PATIENCE):
        while len(seconds) < calls + 100:  # noqa: ASYNC110 - a count that another task makes
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("spare", [False, True], ids=["cold", "spare"])
def test_a_call_waits_less_than_containerd_does(stage: Stage, spare: bool) -> None:
    with (stage.root / "configuration.toml").open("a") as config:
        config.write(f"keeper_spare = {str(spare).lower()}\n")
    stage.shim.start("pod", **stage.env).ok()
    eventually("the boot", stage.booted, within=PATIENCE)
    seconds: list[float] = []

    async def body() -> list[float]:
        longest = []
        async with connected(stage) as client:
            request = task.CreateTaskRequest(id="pod", bundle=str(stage.bundle))
            await client.call(SERVICE, "Create", wire.encode(request), timeout=PATIENCE)
            over = asyncio.Event()
            async with asyncio.TaskGroup() as group:
                group.create_task(ask_for_ever(client, seconds, over))
                for _ in range(KILLS):
                    begin = len(seconds)
                    await kill_and_wait(stage, seconds)
                    longest.append(max(seconds[begin:]))
                over.set()
            await client.call(SERVICE, "Delete", wire.encode(task.DeleteRequest(id="pod")), timeout=PATIENCE)
            await client.call(SERVICE, "Shutdown", wire.encode(task.ShutdownRequest(id="pod")), timeout=PATIENCE)
        return longest

    waits = sorted(asyncio.run(body()))
    middle, last = waits[len(waits) // 2], waits[-1]
    usual = sorted(seconds)[len(seconds) // 2]
    print(
        f"\n{'spare' if spare else 'cold'}: {KILLS} deaths, {len(seconds)} calls, usually {usual * 1000:.1f} ms; the longest call"
    )
    print(f"of a death {middle * 1000:.0f} ms in the middle, {last * 1000:.0f} ms at most")
    assert last < STATE_SECONDS * SCALE
