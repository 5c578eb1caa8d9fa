"""A pod that is a unit of a real systemd, over a guest that counts: how it lives, and what deaths of its daemon leave unchanged."""

import asyncio
import json
import time
from pathlib import Path

import pytest

from integration.conftest import PREFIX
from integration.harness.waiting import eventually
from integration.keeper.verbs.client import PATIENCE, Caller
from integration.keeper.verbs.test_ends import finish, state
from integration.keeper.verbs.test_verbs import ALL, lived
from integration.systemd.lives import over_a_container, started
from integration.systemd.manager import Systemd
from integration.systemd.stage import UnitStage
from kata_shimd import wire
from kata_shimd.api import task
from kata_shimd.cli.systemd import texts


def test_a_pod_is_a_unit_and_leaves_none(stage: UnitStage) -> None:
    async def body(caller: Caller, ended: "asyncio.Task[int]") -> None:
        assert (stage.state(), stage.state("MainPID")) == ("active", str(stage.pid("daemon")))
        assert stage.state("Slice") == "kata.slice"
        assert stage.state("Description") == "Kata pod k8s.io/pod"
        stage.guest.finish("pod", 5)
        assert await ended == 5
        await finish(stage, caller)

    over_a_container(stage, body)
    eventually("nothing left", stage.is_gone, within=PATIENCE)


def test_a_pod_is_in_the_slice_of_its_spec(stage: UnitStage) -> None:
    config = stage.bundle / "config.json"
    spec = json.loads(config.read_text())
    spec["linux"]["cgroupsPath"] = "kubepods-besteffort-pod1_2.slice:cri-containerd:pod"
    config.write_text(json.dumps(spec))
    started(stage)
    assert stage.state("Slice") == "kubepods-besteffort-pod1_2.slice"
    group = "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1_2.slice/" + stage.unit
    assert stage.state("ControlGroup") == group
    stage.systemd.systemctl("stop", stage.unit)
    eventually("nothing left", stage.is_gone, within=PATIENCE)


def test_deaths_change_nothing(stage: UnitStage) -> None:
    async def body(caller: Caller, ended: "asyncio.Task[int]") -> None:
        surroundings = stage.surroundings()
        outside = (stage.systemd.inside / "proc/1/ns/mnt").readlink().name
        assert (surroundings["PPid"], surroundings["mnt"] != outside) == ("1", True)
        for deaths in range(1, 6):
            await asyncio.to_thread(stage.kill_daemon)
            assert await state(caller) == 2
            assert (stage.deaths(), stage.state("NRestarts")) == (deaths, str(deaths))
            assert stage.state("MainPID") == str(stage.pid("daemon"))
            assert stage.surroundings() == surroundings
        stage.guest.finish("pod", 42)
        assert await ended == 42
        await finish(stage, caller)

    over_a_container(stage, body)
    eventually("nothing left", stage.is_gone, within=PATIENCE)
    assert stage.niceness() == [0, *[-10] * 5], "a later daemon goes first until it serves"
    assert stage.guest.sessions == 1, "the guest never saw a daemon die"
    assert [topic for topic in stage.events.topics if "exit" in topic] == ["/tasks/exit"]


def test_an_end_while_no_daemon_is_there(stage: UnitStage) -> None:
    """systemd waits before it starts the next, and there is a while without one."""

    async def body(caller: Caller, ended: "asyncio.Task[int]") -> None:
        stage.kill("daemon")
        await asyncio.to_thread(
            eventually, "systemd's wait", lambda: stage.state("SubState") == "auto-restart", within=PATIENCE
        )
        before = time.time_ns()
        stage.guest.finish("pod", 42)
        assert stage.shim.delete("pod").code == 0, "the pod is not dead"
        assert await ended == 42
        found = await caller.ask("State", task.StateRequest(id="pod"), task.StateResponse, armed=False)
        assert before <= wire.nanoseconds(found.exited_at) < before + 1e9, "by then there was none yet"
        await finish(stage, caller)

    with stage.systemd.tuned("RestartSec=2"):
        over_a_container(stage, body)
    eventually("nothing left", stage.is_gone, within=PATIENCE)


@pytest.mark.parametrize("k", range(1, ALL + 1) if ALL else (1, 3, 8))
def test_every_verb_is_carried_out_once(stage: UnitStage, k: int) -> None:
    started(stage)
    lived(stage, k)
    eventually("nothing left", stage.is_gone, within=PATIENCE)


def test_containerd_starts_and_stops_by_itself(stage: UnitStage) -> None:
    stage.systemd.unit("containerd.service", "[Service]\nExecStart=/bin/sleep 86400\n")

    async def body(caller: Caller, ended: "asyncio.Task[int]") -> None:
        daemon = stage.pid("daemon")
        for act in ("restart", "restart", "stop"):
            stage.systemd.systemctl(act, "containerd.service")
        assert (await state(caller), stage.pid("daemon"), stage.births()) == (2, daemon, 1)
        stage.guest.finish("pod", 0)
        assert await ended == 0
        await finish(stage, caller)

    stage.systemd.systemctl("start", "containerd.service")
    over_a_container(stage, body)
    eventually("nothing left", stage.is_gone, within=PATIENCE)


def test_what_is_logged_is_found_by_pod_container_and_call(stage: UnitStage) -> None:
    stage.configure("[shimd]", "[runtime]\nenable_debug = true\n[shimd]")

    async def body(caller: Caller, ended: "asyncio.Task[int]") -> None:
        stage.guest.finish("pod", 0)
        assert await ended == 0
        await finish(stage, caller)

    over_a_container(stage, body)
    stage.systemd.journal("--sync")
    said = [json.loads(line) for line in stage.systemd.journal("-o", "json", "KATA_POD=pod").splitlines()]
    assert said, stage.systemd.journal()
    assert {entry["_SYSTEMD_UNIT"] for entry in said} == {stage.unit}
    assert any(entry.get("KATA_CONTAINER") == "pod" and entry.get("KATA_RPC") for entry in said), said


def test_the_units_are_what_systemd_takes(systemd: Systemd, tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = systemd.root / "verify"
    directory.mkdir()
    for name, text in texts(PREFIX / "bin").items():
        (directory / name).write_text(text)
    (directory / "kata-pod@.service").rename(directory / "kata-pod@0123456789abcdef0123.service")
    for unit in sorted(directory.iterdir()):
        done = systemd.run(["systemd-analyze", "verify", "--man=no", unit])
        assert (done.returncode, done.stderr) == (0, b""), done
        unit.unlink()
    directory.rmdir()


def test_the_check_knows_that_pods_are_units(systemd: Systemd) -> None:
    command = [PREFIX / "bin/python3", "-m", "kata_shimd.cli", "check", "-o", "json", "--config"]
    config = systemd.root / "check.toml"
    for keeper, verdict in (("auto", "pass"), ("systemd", "pass"), ("launcher", "fail")):
        config.write_text(f'[shimd]\nkeeper = "{keeper}"\n')
        done = systemd.run([*command, config])
        (row,) = (row for row in json.loads(done.stdout)["checks"] if row["name"] == "systemd")
        assert (row["verdict"], row["fix"] == "") == (verdict, verdict == "pass"), row
    config.unlink()


def test_install_and_remove(systemd: Systemd) -> None:
    directory = systemd.root / "etc"
    directory.mkdir()
    words = [PREFIX / "bin/python3", "-m", "kata_shimd.cli", "systemd"]
    for _ in range(2):
        assert systemd.run([*words, "install", "--directory", directory]).returncode == 0
    found = {path.name: path.read_text() for path in directory.iterdir()}
    assert found == texts(PREFIX / "bin")
    assert systemd.run([*words, "remove", "--directory", directory]).returncode == 0
    assert not list(directory.iterdir())
    failed = systemd.run([*words, "install", "--directory", Path("/nowhere")])
    assert failed.returncode == 1
    assert failed.stderr.startswith(b"kata-shimd: install unit: /nowhere/kata-pod@.service: No such file")
    directory.rmdir()
