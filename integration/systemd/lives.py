"""What the tests of a unit have in common: a container that runs in a pod that is one."""

import asyncio
from collections.abc import Callable, Coroutine

from integration.harness.waiting import eventually
from integration.keeper.verbs.client import PATIENCE, Caller
from integration.keeper.verbs.test_ends import running
from integration.systemd.stage import UnitStage

Body = Callable[[Caller, "asyncio.Task[int]"], Coroutine[None, None, None]]


def started(stage: UnitStage) -> None:
    stage.shim.start("pod", **stage.env).ok()
    eventually("the boot", stage.booted, within=PATIENCE)


def over_a_container(stage: UnitStage, body: Body) -> None:
    """Start the pod as containerd would, and run ``body`` over a container that runs."""
    started(stage)

    async def whole() -> None:
        async with running(stage) as (caller, ended):
            await body(caller, ended)

    asyncio.run(whole())


async def until_gone(stage: UnitStage) -> None:
    await asyncio.to_thread(eventually, "nothing left", stage.is_gone, within=PATIENCE)
