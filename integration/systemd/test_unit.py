"""A pod that is a unit of a real systemd's, over a guest that counts: daemons that die, hang and are told to end."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager

import pytest

from integration.harness.waiting import eventually
from integration.keeper.verbs.client import PATIENCE, Caller, connected
from integration.keeper.verbs.test_ends import DEAD, finish, running, state
from integration.systemd.stage import UnitStage

Body = Callable[[Caller, "asyncio.Task[int]"], Coroutine[None, None, None]]


def over_a_container(stage: UnitStage, body: Body) -> None:
    """Start the pod as containerd would, and run ``body`` over a container that runs."""
    stage.shim.start("pod", **stage.env).ok()
    eventually("the boot", stage.booted, within=PATIENCE)

    async def whole() -> None:
        async with running(stage) as (caller, ended):
            await body(caller, ended)

    asyncio.run(whole())


def test_a_pod_is_a_unit_and_leaves_none(stage: UnitStage) -> None:
    async def body(caller: Caller, ended: "asyncio.Task[int]") -> None:
        assert (stage.state(), stage.state("MainPID")) == ("active", str(stage.pid("daemon")))
        assert stage.state("Slice") == "kata.slice"
        stage.guest.finish("pod", 5)
        assert await ended == 5
        await finish(stage, caller)

    over_a_container(stage, body)
    eventually("nothing left", stage.is_gone, within=PATIENCE)
