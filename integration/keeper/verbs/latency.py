"""How long a call waits when the daemon dies under it; ``KATA_SHIMD_KILLS`` deaths are measured."""

import asyncio
import os
import time
from collections.abc import Callable
from typing import Final

from integration.harness.scale import SCALE
from integration.keeper.verbs.client import PATIENCE, SERVICE, connected
from integration.keeper.verbs.stage import Stage
from kata_shimd import wire
from kata_shimd.api import task
from kata_shimd.ttrpc.client import Client

KILLS: Final = int(os.environ.get("KATA_SHIMD_KILLS", "5"))
#: containerd gives State two seconds.
STATE_SECONDS: Final = 2.0
#: So many calls after a death, in which they are quick again.
AFTER: Final = 100


class Calls:
    """State, asked again and again; the seconds that each took."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._answered = asyncio.Event()
        self.seconds: list[float] = []

    async def ask_for_ever(self) -> None:
        request = wire.encode(task.StateRequest(id="pod"))
        while True:
            begin = time.monotonic()
            await self._client.call(SERVICE, "State", request, timeout=PATIENCE)
            self.seconds.append(time.monotonic() - begin)
            self._answered.set()
            await asyncio.sleep(0.002)  # the pace of the asking, not a wait

    async def more(self, count: int) -> None:
        """Until so many more have been answered."""
        wanted = len(self.seconds) + count
        async with asyncio.timeout(PATIENCE):
            while len(self.seconds) < wanted:
                self._answered.clear()
                await self._answered.wait()


async def _measure(stage: Stage, kill: Callable[[], None]) -> tuple[list[float], list[float]]:
    """The seconds of every call, and of the longest of each death."""
    longest = []
    async with connected(stage) as client:
        request = task.CreateTaskRequest(id="pod", bundle=str(stage.bundle))
        await client.call(SERVICE, "Create", wire.encode(request), timeout=PATIENCE)
        calls = Calls(client)
        async with asyncio.TaskGroup() as group:
            asking = group.create_task(calls.ask_for_ever())
            for _ in range(KILLS):
                begin = len(calls.seconds)
                await asyncio.to_thread(kill)
                await calls.more(AFTER)
                longest.append(max(calls.seconds[begin:]))
            asking.cancel()
        await client.call(SERVICE, "Delete", wire.encode(task.DeleteRequest(id="pod")), timeout=PATIENCE)
        await client.call(SERVICE, "Shutdown", wire.encode(task.ShutdownRequest(id="pod")), timeout=PATIENCE)
    return sorted(calls.seconds), sorted(longest)


def assert_quick(what: str, stage: Stage, kill: Callable[[], None]) -> None:
    """A call waits less than containerd does. ``kill``: ends the daemon, and waits for another."""
    seconds, longest = asyncio.run(_measure(stage, kill))
    usual, middle, last = seconds[len(seconds) // 2], longest[len(longest) // 2], longest[-1]
    print(f"\n{what}: {KILLS} deaths, {len(seconds)} calls, usually {usual * 1000:.1f} ms; the longest call of a death")
    print(f"{middle * 1000:.0f} ms in the middle, {last * 1000:.0f} ms at most")
    assert last < STATE_SECONDS * SCALE
