"""The whole of it: systemd, containerd as its service, a pod that is a unit, and a machine."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from integration.harness import pods, process
from integration.harness.ctr import PATIENCE, Ctr
from integration.harness.scale import SCALE
from integration.harness.waiting import eventually
from integration.keeper.installation import Installation
from integration.keeper.killing import Hammer, Noticed, listing
from integration.systemd.manager import Systemd
from integration.systemd.stage import REBORN
from kata_shimd import __version__

pytestmark = pytest.mark.vm


@pytest.fixture
def ctr(systemd: Systemd, ctr: Ctr) -> Ctr:
    """For pods that systemd keeps, with a monitor that has to answer soon."""
    guest = os.environ.get("KATA_SHIMD_GUEST")
    config = systemd.root / "configuration.toml"
    config.write_text(
        "[shimd]\n"
        + (f'guest_dir = "{guest}"\n' if guest else "")
        + 'keeper = "auto"\n[shimd.timeouts]\nqmp = 2\n'
        + pods.BOOTED
    )
    return replace(ctr, config=config)


class Unit:
    """The pod of the container ``name``, seen from outside."""

    def __init__(self, systemd: Systemd, ctr: Ctr, name: str) -> None:
        self.pod = pods.Pod(systemd.run_dir, pods.pod_hash(str(ctr.containerd.address), ctr.namespace, name))
        self.name, self._systemd = f"kata-pod@{self.pod.name}.service", systemd

    def served(self) -> int:
        return sum(event["event"] == "agent-ready" for event in self.pod.journal())

    def daemon(self) -> str:
        return self._systemd.show(self.name, "MainPID")

    def kill_daemon(self) -> None:
        served, old = self.served(), self.daemon()
        self._systemd.systemctl("kill", "--kill-whom=main", "--signal=KILL", self.name)
        eventually("another daemon", lambda: self.served() > served and self.daemon() not in ("0", old), within=REBORN)

    def kill_machine(self, signal: str) -> None:
        live = self.pod.ledger().live.values()
        pid = next(record.fields["pid"] for record in live if record.fields.get("what") == "qemu")
        self._systemd.kill(pid, signal)

    def is_gone(self) -> bool:
        return self.name not in self._systemd.units() and not self.pod.directory.exists()


def test_deaths_and_containerds_restart_are_not_noticed(systemd: Systemd, ctr: Ctr, name: str) -> None:
    unit = Unit(systemd, ctr, name)
    waiting = ctr.spawn(*ctr.run_words(name, "sh", "-c", "echo up; sleep 86400 & wait", options=["--rm"]))
    try:
        assert waiting.stdout is not None
        assert waiting.stdout.readline() == b"up\n", waiting.stderr and waiting.stderr.read()
        noticed = Noticed(ctr.containerd)
        with Hammer(listing(ctr, {name: "RUNNING"})) as listed:
            for _ in range(3):
                unit.kill_daemon()
        assert (listed.failures(), noticed.complaints()) == ([], [])
        daemon = unit.daemon()
        ctr.containerd.act("restart")  # type: ignore[attr-defined]
        assert (unit.daemon(), ctr.tasks()[name][1]) == (daemon, "RUNNING")
        unit.kill_daemon()
        assert ctr.exec(name, "e", "echo", "here").ok().out == "here"
        ctr.kill(name).ok()
    finally:
        process.finish(waiting)
    eventually("the end", lambda: ctr.tasks()[name][1] == "STOPPED", within=PATIENCE)
    assert "exit code 137" in ctr.delete_task(name).ok().err
    ctr("containers", "delete", name).ok()
    eventually("nothing left", unit.is_gone, within=PATIENCE)


def test_another_installation_goes_on_in_the_unit(systemd: Systemd, ctr: Ctr, name: str) -> None:
    unit = Unit(systemd, ctr, name)
    newer = Installation.copy(systemd.root / "new", "7.8.9")
    ctr.start(name, "sh", "-c", "while :; do sleep 86400; done")
    noticed = Noticed(ctr.containerd)
    with Hammer(listing(ctr, {name: "RUNNING"})) as listed:
        words = [
            newer.python,
            "-I",
            "-m",
            "kata_shimd.cli",
            "upgrade",
            name,
            "--run-dir",
            systemd.run_dir,
            "-o",
            "json",
        ]
        done = systemd.run(words, within=PATIENCE)
        assert done.returncode == 0, done
    assert json.loads(done.stdout)["pods"][0]["result"] == "upgraded"
    assert (listed.failures(), noticed.complaints()) == ([], [])
    for command in ("ExecStart", "ExecStopPost"):
        assert f"path={newer.launcher} ;" in systemd.show(unit.name, command)
    unit.kill_daemon()
    versions = [event["version"] for event in unit.pod.journal() if event["event"] == "daemon"]
    assert versions == [__version__, "7.8.9", "7.8.9"]
    assert ctr.exec(name, "e", "echo", "here").ok().out == "here"
    ctr.remove(name)
    eventually("nothing left", unit.is_gone, within=PATIENCE)
    shutil.rmtree(newer.prefix)


def test_a_machine_that_is_stopped_is_a_lost_task(systemd: Systemd, ctr: Ctr, name: str) -> None:
    """Its monitor does not answer, so the watchdog is not told that all is well. The task is lost, and never ended with 0."""
    with systemd.tuned("WatchdogSec=3", "TimeoutAbortSec=1"):
        unit = Unit(systemd, ctr, name)
        ctr.start(name, "sleep", "86400")
        unit.kill_machine("STOP")
        eventually("the end", lambda: ctr.tasks().get(name, (0, ""))[1] in ("", "STOPPED"), within=2 * PATIENCE)
        ended = ctr.delete_task(name)
        ctr("containers", "delete", name).ok()
        # Told by the daemon, or by `delete` when there was none any more; containerd then has no task to delete.
        assert "exit code 255" in ended.err or "exit code 137" in ended.err or ended.code == 1, ended
        eventually("nothing left", unit.is_gone, within=PATIENCE)


def test_a_template_is_made_whether_or_not_the_unit_that_ordered_it_lives(
    systemd: Systemd, ctr: Ctr, name: str
) -> None:
    """A maker is no part of the pod, though it was begun in its unit: that ends without it."""
    config, place = systemd.root / "cloning.toml", systemd.inside / "run/vc"
    assert ctr.config is not None
    config.write_text(ctr.config.read_text().replace(pods.BOOTED, pods.CLONED))
    first, second = (Unit(systemd, ctr, f"{name}-{which}") for which in ("a", "b"))
    ctr.run(f"{name}-a", "true", config=config).ok()
    eventually("nothing left of the first", first.is_gone, within=PATIENCE)
    try:
        eventually("the template", lambda: _whole(place / "vm/template"), within=60 * SCALE)
        ctr.run(f"{name}-b", "true", config=config).ok()
    finally:
        shutil.rmtree(place)
    assert "template-ordered" in [event["event"] for event in first.pod.journal()]
    assert "cloned" in [event["event"] for event in second.pod.journal()]
    eventually("nothing left", second.is_gone, within=PATIENCE)


def _whole(place: Path) -> bool:
    """Whether there is one that nobody is at."""
    return any(path.is_dir() and "." not in path.name for path in place.glob("*"))
