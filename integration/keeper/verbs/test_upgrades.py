"""A pod that is handed on to another installation while a daemon, the old or the new, dies at the k-th durable step of it."""

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest

from integration.harness.waiting import eventually
from integration.keeper.verbs.client import PATIENCE, Caller
from integration.keeper.verbs.stage import Stage, with_standin
from integration.keeper.verbs.test_ends import finish, kill, running, state
from integration.keeper.verbs.test_verbs import STEPS
from kata_shimd import wire
from kata_shimd.api import pod as pb
from kata_shimd.api.descriptors import MethodDescriptor
from kata_shimd.api.services import pod as rpcs
from kata_shimd.ttrpc import RpcError


async def call(caller: Caller, rpc: MethodDescriptor, request) -> object:
    async with asyncio.timeout(PATIENCE):
        return wire.decode(rpc.response, await caller.client.call(rpc.service, rpc.name, wire.encode(request)))


async def moved(caller: Caller, asked: pb.UpgradeRequest) -> None:
    """A new daemon that dies on trial is followed by one of the old, as it should be: then that one is asked."""
    begged: set[int] = set()
    async with asyncio.timeout(PATIENCE):
        while True:
            found = await call(caller, rpcs.DESCRIBE, pb.DescribeRequest())
            if found.settled and found.launcher == asked.launcher:
                return
            if found.settled and found.pid not in begged:
                begged.add(found.pid)
                with suppress(RpcError):  # it is about to go already, over the last one's request
                    await call(caller, rpcs.UPGRADE, asked)
            await asyncio.sleep(0.05)  # daemons come and go by themselves


#: The loop of the installation before, and of that after.
LOOPS: Final = (("asyncio", "uvloop"), ("uvloop", "asyncio"))


@pytest.mark.parametrize("k", STEPS)
def test_the_pod_has_a_daemon_whoever_dies(stage: Stage, k: int) -> None:
    before, after = LOOPS[k % 2]
    stage.configure("[shimd]", f'[shimd]\nevent_loop = "{before}"')
    stage.shim.start("pod", **stage.env).ok()
    eventually("the boot", stage.booted, within=PATIENCE)
    stage.configure(f'"{before}"', f'"{after}"')
    launcher = with_standin(stage.root / "other")
    asked = pb.UpgradeRequest(python=str(launcher.with_name("python3")), launcher=str(launcher), patience=60)

    async def body() -> None:
        async with running(stage) as (caller, ended):
            stage.arm(k)
            await moved(caller, asked)
            stage.die.unlink(missing_ok=True)
            assert await state(caller) == 2
            stage.guest.finish("pod", 5)
            assert await ended == 5
            await finish(stage, caller)

    asyncio.run(body())
    assert stage.guest.sessions == 1, "the guest never saw it"


@pytest.mark.parametrize("settles", [True, False], ids=["settles", "dies"])
def test_a_keeper_that_dies_while_a_daemon_is_on_trial(stage: Stage, settles: bool) -> None:
    """It is on trial as long as the guest is silent. Its next keeper knows the way back, and follows it if it stays."""
    stage.shim.start("pod", **stage.env).ok()
    eventually("the boot", stage.booted, within=PATIENCE)
    launcher = with_standin(stage.root / "other")
    asked = pb.UpgradeRequest(python=str(launcher.with_name("python3")), launcher=str(launcher), patience=60)

    def program(what: str) -> str:
        return Path(f"/proc/{stage.pod.process(what).pid}/exe").readlink().parent.name

    async def body() -> None:
        async with running(stage) as (caller, ended):
            stage.guest.silent = {"Check"}
            await call(caller, rpcs.UPGRADE, asked)
            await asyncio.to_thread(eventually, "the trial", lambda: stage.deaths() == 1, within=PATIENCE)
            await state(caller)
            await kill(stage, "keeper")
            if not settles:
                await kill(stage, "daemon")
            stage.guest.speak()
            found = await settled(caller)
            assert (found.launcher == asked.launcher, stage.deaths()) == (settles, 1 if settles else 2)
            wanted = "other" if settles else "bin"
            await asyncio.to_thread(eventually, "the keeper", lambda: program("keeper") == wanted, within=PATIENCE)
            assert await state(caller) == 2
            stage.guest.finish("pod", 5)
            assert await ended == 5
            await finish(stage, caller)

    asyncio.run(body())
    assert stage.guest.sessions == 1, "the guest never saw it"


async def settled(caller: Caller) -> pb.DescribeResponse:
    async with asyncio.timeout(PATIENCE):
        while True:
            found = await call(caller, rpcs.DESCRIBE, pb.DescribeRequest())
            if found.settled:
                return found
            await asyncio.sleep(0.05)  # nobody tells when a daemon has its pod
