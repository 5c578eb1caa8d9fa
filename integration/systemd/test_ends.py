"""How a unit ends: daemons that hang, that die too often, that are told to end; and pods that keep nothing, or never come to be."""

import asyncio
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest

from integration.conftest import PREFIX
from integration.harness.waiting import eventually
from integration.keeper.verbs.client import PATIENCE, Caller
from integration.keeper.verbs.test_ends import DEAD, finish, state
from integration.systemd.lives import over_a_container, started, until_gone
from integration.systemd.manager import Systemd
from integration.systemd.stage import REBORN, UnitStage, install
from kata_shimd.api import task
from kata_shimd.errors import Unavailable

#: Short enough for a test, long enough for a daemon on a busy machine.
WATCHDOG = ("WatchdogSec=3", "TimeoutAbortSec=1")


async def reborn(stage: UnitStage, births: int, *, within: float = REBORN) -> None:
    await asyncio.to_thread(eventually, "another daemon", lambda: stage.births() > births, within=within)


@pytest.mark.parametrize("signal", ["HUP", "STOP"])
def test_a_daemon_that_hangs_is_replaced(stage: UnitStage, signal: str) -> None:
    """With its loop blocked by Python, which SIGABRT ends; and stopped, which it does not."""

    async def body(caller: Caller, ended: "asyncio.Task[int]") -> None:
        stage.kill("daemon", signal)
        await reborn(stage, 1)
        assert await state(caller) == 2
        stage.guest.finish("pod", 9)
        assert await ended == 9
        await finish(stage, caller)

    with stage.systemd.tuned(*WATCHDOG):
        over_a_container(stage, body)
        eventually("nothing left", stage.is_gone, within=PATIENCE)


def test_a_daemon_that_is_well_is_left_alone(stage: UnitStage) -> None:
    async def body(caller: Caller, ended: "asyncio.Task[int]") -> None:
        def told() -> str:
            return stage.state("WatchdogTimestampMonotonic")

        first = told()
        for _ in range(2):
            now = told()
            await asyncio.to_thread(eventually, "a word for the watchdog", lambda now=now: told() != now, within=3)
        assert (told() != first, stage.births()) == (True, 1)
        stage.guest.finish("pod", 0)
        assert await ended == 0
        await finish(stage, caller)

    with stage.systemd.tuned(*WATCHDOG):
        over_a_container(stage, body)
        eventually("nothing left", stage.is_gone, within=PATIENCE)


def test_a_machine_that_does_not_answer_ends_the_pod(stage: UnitStage) -> None:
    """No daemon can do anything for it: after a few the pod is given up, and whoever waited is told."""

    async def body(caller: Caller, ended: "asyncio.Task[int]") -> None:
        stage.kill("qemu", "STOP")
        assert await ended == DEAD
        await until_gone(stage)
        assert stage.births() == 4

    with stage.systemd.tuned("WatchdogSec=1", "TimeoutAbortSec=1"):
        over_a_container(stage, body)


def test_a_pod_whose_daemons_die_too_fast_is_given_up(stage: UnitStage) -> None:
    stage.configure("keeper_deaths = 1000", "keeper_deaths = 2\nkeeper_seconds = 600")

    async def body(caller: Caller, ended: "asyncio.Task[int]") -> None:
        for _ in range(2):
            await asyncio.to_thread(stage.kill_daemon)
            assert await state(caller) == 2
        stage.kill("daemon")
        assert await ended == DEAD
        await until_gone(stage)
        assert stage.births() == 3

    over_a_container(stage, body)
    assert "3 daemons died within 600 s: the pod is given up" in stage.systemd.journal("--unit", stage.unit)


def test_a_daemon_that_cannot_begin_is_given_up(stage: UnitStage) -> None:
    """What a later daemon needs is gone: none comes as far as to serve."""
    stage.configure("keeper_deaths = 1000", "keeper_deaths = 5\nkeeper_seconds = 600")

    async def body(caller: Caller, ended: "asyncio.Task[int]") -> None:
        (stage.pod.directory / "configuration").write_text("spoilt")
        stage.kill("daemon")
        assert await ended == DEAD
        await until_gone(stage)

    over_a_container(stage, body)


def test_a_daemon_that_dies_while_it_stops_is_finished_for(stage: UnitStage) -> None:
    async def body(caller: Caller, ended: "asyncio.Task[int]") -> None:
        stage.guest.finish("pod", 0)
        assert await ended == 0
        await caller.ask("Delete", task.DeleteRequest(id="pod"), task.DeleteResponse, armed=False)
        stage.arm(1)
        with suppress(Unavailable):
            await caller.ask("Shutdown", task.ShutdownRequest(id="pod"), task.DeleteResponse, armed=False)
        await until_gone(stage)
        assert not stage.die.exists(), "it did not die"

    over_a_container(stage, body)


def test_stopping_the_unit_ends_the_pod(stage: UnitStage) -> None:
    async def body(caller: Caller, ended: "asyncio.Task[int]") -> None:
        await asyncio.to_thread(stage.kill_daemon)
        await asyncio.to_thread(stage.systemd.systemctl, "stop", stage.unit)
        eventually("nothing left", stage.is_gone, within=PATIENCE)
        assert await ended in (DEAD, 255)

    over_a_container(stage, body)


def test_stopping_the_unit_of_a_daemon_that_hangs(stage: UnitStage) -> None:
    async def body(caller: Caller, ended: "asyncio.Task[int]") -> None:
        stage.kill("daemon", "HUP")
        await asyncio.to_thread(stage.systemd.systemctl, "stop", stage.unit)
        eventually("nothing left", stage.is_gone, within=PATIENCE)
        assert await ended == DEAD

    with stage.systemd.tuned("TimeoutStopSec=1"):
        over_a_container(stage, body)


def test_a_pod_that_keeps_nothing_ends_with_its_daemon(stage: UnitStage) -> None:
    stage.configure('keeper = "systemd"', 'keeper = "off"')
    stage.shim.start("pod", **stage.env).ok()
    eventually("the boot", lambda: stage.served() == 1, within=PATIENCE)
    stage.kill("daemon")
    eventually("nothing left", stage.is_gone, within=PATIENCE)
    assert stage.births() == 1


def test_delete_and_start_take_away_what_is_left(stage: UnitStage) -> None:
    """A daemon that does not answer and that systemd is not to end: `delete` leaves it alone, another `start` takes over."""
    started(stage)
    first = stage.pid("daemon")
    stage.shim.start("pod", **stage.env).ok()
    assert stage.pid("daemon") == first
    stage.systemd.systemctl("stop", stage.unit)
    started(stage)
    stage.kill("daemon")
    eventually("another daemon", lambda: stage.births() >= 3, within=REBORN)
    stage.systemd.systemctl("stop", stage.unit)
    assert stage.shim.delete("pod").code == 0
    eventually("nothing left", stage.is_gone, within=PATIENCE)


def test_an_undo_that_cannot_reach_systemd(stage: UnitStage) -> None:
    """The ledger says to the unit that it is over."""
    started(stage)
    words = ["/usr/bin/env", "PATH=/nowhere", stage.shim.launcher, "undo", stage.pod.directory]
    stage.systemd.run(words)
    eventually("nothing left", stage.is_gone, within=PATIENCE)
    assert stage.births() == 1


@pytest.mark.parametrize("k", range(3, 8))
def test_a_launcher_that_dies_leaves_nothing_that_runs(stage: UnitStage, k: int) -> None:
    """Killed after each record it writes, from the unit's own on: `delete` finds all of it."""
    assert stage.shim.start("pod", KATA_SHIMD_DIE_AT=f"launcher:{k}", **stage.env).code != 0
    assert stage.shim.delete("pod").code == 0
    eventually("nothing left", stage.is_gone, within=PATIENCE)


def test_a_first_daemon_that_fails_is_a_failure_of_start(stage: UnitStage) -> None:
    stage.configure('keeper = "systemd"', 'keeper = "launcher"')
    said = stage.shim.start("pod", **stage.env).failed()
    assert said.startswith("start daemon: pod: ended before it was ready: choose keeper: launcher: "), said
    assert "kata-shimd systemd remove" in said
    eventually("nothing left", stage.is_gone, within=PATIENCE)


def test_a_unit_that_systemd_will_not_start_is_a_failure_of_start(stage: UnitStage) -> None:
    with stage.systemd.tuned("ExecStartPre=/bin/false"):
        said = stage.shim.start("pod", **stage.env).failed()
    assert said.startswith(f"start unit: {stage.unit}: Job for {stage.unit} failed"), said
    eventually("nothing left", stage.is_gone, within=PATIENCE)


def test_without_the_template_pods_are_no_units(stage: UnitStage) -> None:
    stage.configure('keeper = "systemd"', 'keeper = "auto"')
    stage.shim.start("pod", KATA_SHIMD_NO_UNIT="1", **stage.env).ok()
    eventually("the boot", stage.booted, within=PATIENCE)
    assert stage.pid("keeper")
    assert not stage.systemd.units()
    stage.kill("daemon", "TERM")
    eventually("nothing left", stage.is_gone, within=PATIENCE)


def test_a_launcher_in_other_namespaces_makes_no_units(stage: UnitStage) -> None:
    stage.configure('keeper = "systemd"', 'keeper = "auto"')
    wrapped = stage.root / "bin/wrapped"
    wrapped.write_text(f'#!/bin/sh\nexec unshare --mount {stage.shim.launcher} "$@"\n')
    wrapped.chmod(0o755)
    launcher, stage.shim.launcher = stage.shim.launcher, wrapped
    started(stage)
    assert not stage.systemd.units()
    stage.shim.launcher = launcher
    stage.kill("daemon", "TERM")
    eventually("nothing left", stage.is_gone, within=PATIENCE)


def test_at_shutdown_pods_end_before_containerd() -> None:
    with Systemd([PREFIX / "bin"]) as systemd, tempfile.TemporaryDirectory(prefix="p", dir=systemd.root) as root:
        install(systemd, PREFIX)
        stage, found = UnitStage(Path(root), systemd), systemd.root / "found"
        stop = f"/bin/sh -c 'ls {stage.shim.run_dir}/pods | wc -l > {found}'"
        systemd.unit("containerd.service", f"[Service]\nExecStart=/bin/sleep 86400\nExecStop={stop}\n")
        systemd.unit("down.target", "[Unit]\nDefaultDependencies=no\nRequires=shutdown.target\nAfter=shutdown.target\n")
        systemd.systemctl("start", "containerd.service")

        async def body(caller: Caller, ended: "asyncio.Task[int]") -> None:
            await asyncio.to_thread(systemd.systemctl, "start", "down.target")
            assert await ended in (DEAD, 255)

        over_a_container(stage, body)
        assert found.read_text() == "0\n"
        eventually("nothing left", stage.is_gone, within=PATIENCE)
        stage.close()
