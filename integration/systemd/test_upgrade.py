"""Pods that are units, moved to another installation while a container runs: it settles, or the one before serves again."""

import asyncio
import shutil
from pathlib import Path

import pytest

from integration.conftest import PREFIX
from integration.harness.waiting import eventually
from integration.keeper.verbs.client import PATIENCE, Caller
from integration.keeper.verbs.stage import with_standin
from integration.keeper.verbs.test_ends import DEAD, finish, state
from integration.keeper.verbs.test_upgrades import LOOPS, call, moved, settled
from integration.keeper.verbs.test_verbs import ALL
from integration.systemd.lives import over_a_container, until_gone
from integration.systemd.stage import UnitStage
from kata_shimd.api import pod as pb
from kata_shimd.api.services import pod as rpcs
from kata_shimd.ttrpc import RpcError


def other(stage: UnitStage, instead: str = "") -> pb.UpgradeRequest:
    """Another installation, whose daemons do this in their place."""
    launcher = with_standin(stage.root / "other")
    python = launcher.with_name("python3")
    if instead:
        shebang, rest = python.read_text().split("\n", 1)
        python.write_text(f'{shebang}\ncase "$*" in *--check*) ;; *) {instead} ;; esac\n{rest}')
    return pb.UpgradeRequest(python=str(python), launcher=str(launcher), patience=60)


async def serving(stage: UnitStage, caller: Caller, births: int) -> pb.DescribeResponse:
    """The daemon that has the pod when so many have begun."""
    await asyncio.to_thread(eventually, f"{births} births", lambda: stage.deaths() + 1 >= births, within=PATIENCE)
    return await settled(caller)


@pytest.mark.parametrize("k", range(1, ALL + 1) if ALL else (1, 4, 9))
def test_the_pod_has_a_daemon_whoever_dies(stage: UnitStage, k: int) -> None:
    before, after = LOOPS[k % 2]
    stage.configure("[shimd]", f'[shimd]\nevent_loop = "{before}"')

    async def body(caller: Caller, ended: "asyncio.Task[int]") -> None:
        stage.configure(f'"{before}"', f'"{after}"')
        asked = other(stage)
        stage.arm(k)
        await moved(caller, asked)
        stage.die.unlink(missing_ok=True)
        assert await state(caller) == 2
        assert (stage.state(), stage.state("MainPID")) == ("active", str(stage.pid("daemon")))
        await asyncio.to_thread(stage.kill_daemon)
        found = await call(caller, rpcs.DESCRIBE, pb.DescribeRequest())
        assert found.launcher == asked.launcher, "and later daemons are of the new installation too"
        stage.guest.finish("pod", 5)
        assert await ended == 5
        await finish(stage, caller)

    over_a_container(stage, body)
    eventually("nothing left", stage.is_gone, within=PATIENCE)
    assert stage.guest.sessions == 1, "the guest never saw it"


#: What it does instead of being a daemon, and for how long it may.
SPOILED = {
    "dies": ("exit 3", 60),
    "ends well": ("exit 0", 60),
    "told to end": ("kill -TERM $$", 60),
    "hangs": ("exec sleep 86400", 2),
    "stopped": ("kill -STOP $$", 2),
}


@pytest.mark.parametrize("how", SPOILED)
def test_one_that_fails_in_its_place_gives_it_back(stage: UnitStage, how: str) -> None:
    """Though not a single daemon may die."""
    stage.configure("keeper_deaths = 1000", "keeper_deaths = 0\nkeeper_seconds = 600")
    instead, patience = SPOILED[how]

    async def body(caller: Caller, ended: "asyncio.Task[int]") -> None:
        before = await call(caller, rpcs.DESCRIBE, pb.DescribeRequest())
        asked = other(stage, instead)
        asked.patience = patience
        await call(caller, rpcs.UPGRADE, asked)
        found = await serving(stage, caller, 3)
        assert (found.launcher, stage.births()) == (before.launcher, 2), "one has never been a daemon"
        assert "the daemon on trial has not settled" in (stage.pod.directory / "daemon.stderr").read_text()
        assert await state(caller) == 2
        stage.kill("daemon")
        assert await ended == DEAD, "and from then on deaths count again"
        await until_gone(stage)

    with stage.systemd.tuned("TimeoutStartSec=6"):
        over_a_container(stage, body)
        eventually("nothing left", stage.is_gone, within=PATIENCE)


FOLLOW = "import sys; from kata_shimd.cli.units import follow; follow(sys.argv[1:2], sys.argv[2])"


def test_the_old_installation_is_not_needed_any_more(stage: UnitStage) -> None:
    """Once the unit names the new launcher, as the command sees to."""

    async def body(caller: Caller, ended: "asyncio.Task[int]") -> None:
        asked = other(stage)
        await moved(caller, asked)
        daemon = stage.pid("daemon")
        done = stage.systemd.run([PREFIX / "bin/python3", "-I", "-c", FOLLOW, stage.pod.name, asked.launcher])
        assert done.returncode == 0, done
        for command in ("ExecStart", "ExecStopPost"):
            assert f"path={asked.launcher} ;" in stage.state(command)
        assert (stage.pid("daemon"), stage.state("MainPID")) == (daemon, str(daemon))
        shutil.rmtree(stage.root / "bin")
        await asyncio.to_thread(stage.kill_daemon)
        stage.guest.finish("pod", 5)
        assert await ended == 5
        await finish(stage, caller)

    over_a_container(stage, body)
    eventually("nothing left", stage.is_gone, within=PATIENCE)


def test_one_that_knows_nothing_of_units_is_refused(stage: UnitStage) -> None:
    async def body(caller: Caller, ended: "asyncio.Task[int]") -> None:
        asked = other(stage)
        said = '{"version": "0.0.1", "state": [2], "connection": 1, "stream": 1}'
        Path(asked.python).write_text(f"#!/bin/sh\necho '{said}' >&2\n")
        with pytest.raises(RpcError, match=r"0\.0\.1: it cannot be tried in a pod that is a unit"):
            await call(caller, rpcs.UPGRADE, asked)
        assert (await state(caller), stage.births()) == (2, 1)
        stage.guest.finish("pod", 0)
        assert await ended == 0
        await finish(stage, caller)

    over_a_container(stage, body)
    eventually("nothing left", stage.is_gone, within=PATIENCE)
