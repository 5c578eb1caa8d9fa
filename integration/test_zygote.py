"""Pods whose daemons are forks of the node's zygote: the same daemon in the same place, and none of them needs the zygote."""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import pytest

from integration.harness import process
from integration.harness.ctr import PATIENCE, Ctr
from integration.harness.host import Host
from integration.harness.pods import Pod, pod_hash
from integration.harness.process import Process
from integration.harness.scale import SCALE
from integration.harness.waiting import eventually

pytestmark = pytest.mark.vm

PREFIX: Final = Path(os.environ.get("KATA_SHIMD_PREFIX", "/opt/kata-shimd"))


class Zygote:
    """The command, as a service manager would run it."""

    def __init__(self, host: Host) -> None:
        self.socket = host.run_dir / "zygote.sock"
        self._log = host.root / "zygote.log"
        argv = [PREFIX / "bin/python3", "-m", "kata_shimd.cli", "zygote", "--run-dir", host.run_dir]
        with self._log.open("ab") as log:
            self._child = host.spawn(argv, stderr=log)
        eventually("the zygote's socket", self.socket.exists, within=PATIENCE)

    @property
    def pid(self) -> int:
        return self._child.pid

    def ahead(self) -> Process:
        """The child that it forks ahead of a request."""
        return eventually("a child that waits", lambda: next(iter(self._waiting()), None), within=PATIENCE)

    def _waiting(self) -> Iterator[Process]:
        for pid in (Path(f"/proc/{self.pid}/task/{self.pid}/children")).read_text().split():
            found = process.find(int(pid))
            if found is not None and _is_waiting(found):
                yield found

    @property
    def log(self) -> str:
        return self._log.read_text()

    def signal(self, number: signal.Signals) -> None:
        self._child.send_signal(number)

    def close(self) -> None:
        self._child.kill()
        process.finish(self._child)
        self.socket.unlink(missing_ok=True)
        self._log.unlink(missing_ok=True)


@pytest.fixture
def zygote(ctr: Ctr, host: Host) -> Iterator[Zygote]:
    made = Zygote(host)
    yield made
    made.close()


def _is_waiting(child: Process) -> bool:
    """It has rehearsed, and is in poll (as /proc has it, on x86-64 and arm64)."""
    try:
        name, doing = (child.proc / "comm").read_text(), (child.proc / "syscall").read_text()
    except OSError:
        return False
    return name == "kata-spare\n" and doing.split()[0] in ("7", "73")


def daemon_of(ctr: Ctr, name: str) -> Process:
    host = ctr.containerd.host
    return Pod(host.run_dir, pod_hash(str(ctr.containerd.address), ctr.namespace, name)).process("daemon")


def forked_from(daemon: Process, zygote: Zygote) -> bool:
    """The zygote's own fork, so its child until the zygote ends."""
    now = daemon.stat()
    return now is not None and now[1] == zygote.pid


def facts(daemon: Process) -> dict[str, Any]:
    """What the kernel says of where a process lives, without what must differ."""
    status = dict(line.split(":\t", 1) for line in (daemon.proc / "status").read_text().splitlines() if ":\t" in line)
    environ = dict(entry.partition("=")[::2] for entry in (daemon.proc / "environ").read_text().split("\0"))
    spaces = ("net", "pid", "user", "ipc", "uts", "cgroup")
    return {
        **{
            name: status[name]
            for name in ("Umask", "Uid", "Gid", "Groups", "SigBlk", "SigIgn", "SigCgt", "NoNewPrivs", "CapEff")
        },
        "limits": (daemon.proc / "limits").read_text(),
        "oom": (daemon.proc / "oom_score_adj").read_text(),
        "cgroup": (daemon.proc / "cgroup").read_text(),
        "cwd": str((daemon.proc / "cwd").readlink()),
        "session": os.getsid(daemon.pid) == daemon.pid,
        "fds": sorted(_kind(fd) for fd in (daemon.proc / "fd").iterdir()),
        "spaces": [daemon.namespace(kind) for kind in spaces],
        "propagation": {"shared" if "shared:" in line else "private" for line in _roots(daemon)},
        "environ": sorted(environ),
    }


def _kind(fd: Path) -> str:
    return re.sub(r"[0-9a-f]{4,}|\d+", "#", str(fd.readlink()))


def _roots(daemon: Process) -> list[str]:
    return [line for line in (daemon.proc / "mountinfo").read_text().splitlines() if line.split()[4] == "/"]


@pytest.mark.parametrize("ahead", [False, True], ids=["forked when asked", "forked ahead"])
def test_a_fork_lives_as_a_cold_daemon_does(ctr: Ctr, host: Host, name: str, ahead: bool) -> None:
    ctr.start(name, "sleep", "86400")
    cold = facts(daemon_of(ctr, name))
    ctr.remove(name)
    zygote = Zygote(host)
    try:
        waits = zygote.ahead()
        if not ahead:
            waits.kill()
            eventually("its end", lambda: not waits.alive(), within=PATIENCE)
        ctr.start(name, "sleep", "86400")
        daemon = daemon_of(ctr, name)
        assert forked_from(daemon, zygote)
        assert (daemon.pid == waits.pid) == ahead
        forked = facts(daemon)
        assert daemon.namespace("mnt") != process.find(zygote.pid).namespace("mnt")  # type: ignore[union-attr]
        ctr.remove(name)
        # The kernel shows the environment a process was executed with, and a fork was not executed.
        assert "environ" in cold and cold.pop("environ") and forked.pop("environ")
        assert forked == cold
        eventually("the daemon's end", lambda: not daemon.alive(), within=PATIENCE)
    finally:
        zygote.close()


def test_a_whole_life(ctr: Ctr, name: str, zygote: Zygote) -> None:
    done = ctr.run(name, "sh", "-c", "uname -r; exit 7")
    assert (done.code, bool(done.out)) == (7, True), done.err
    assert "error" not in zygote.log


def test_pods_outlive_their_zygote(ctr: Ctr, name: str, zygote: Zygote) -> None:
    ctr.start(name, "sleep", "86400")
    daemon = daemon_of(ctr, name)
    assert forked_from(daemon, zygote)
    zygote.close()
    assert ctr.exec(name, "e", "echo", "still here").ok().out == "still here"
    ctr.remove(name)
    eventually("the daemon's end", lambda: not daemon.alive(), within=PATIENCE)


@pytest.mark.parametrize("how", ["gone", "killed", "stopped"])
def test_without_a_working_zygote_it_is_only_slower(ctr: Ctr, name: str, zygote: Zygote, how: str) -> None:
    """gone: nobody listens on its socket any more. stopped: it takes the request, and never answers."""
    if how == "stopped":
        zygote.signal(signal.SIGSTOP)
    else:
        zygote.signal(signal.SIGTERM if how == "gone" else signal.SIGKILL)
        eventually(
            "its end", lambda: process.find(zygote.pid) is None or not process.find(zygote.pid).alive(), within=PATIENCE
        )  # type: ignore[union-attr]
    assert ctr.run(name, "echo", "well").ok().out == "well"


@pytest.mark.parametrize("moment", ["asked", "recorded", "ready"])
def test_killed_during_a_fork(ctr: Ctr, name: str, host: Host, moment: str) -> None:
    """Several pods at once, one of them the child's that was forked ahead, and the zygote dies in their midst: every pod comes
    up, by one way or the other."""
    zygote = Zygote(host)
    zygote.ahead()
    names = [f"{name}-{number}" for number in range(4)]
    try:
        with ThreadPoolExecutor(len(names) + 1) as pool:
            runs = [pool.submit(ctr.run, one, "echo", one) for one in names]
            eventually(moment, lambda: any(_has_come_to(moment, pod) for pod in _pods(host)), within=PATIENCE)
            zygote.signal(signal.SIGKILL)
            assert [run.result().ok().out for run in runs] == names
    finally:
        zygote.close()


def _pods(host: Host) -> list[Path]:
    return list((host.run_dir / "pods").iterdir())


def _has_come_to(moment: str, pod: Path) -> bool:
    """asked: there is a pod, and no daemon. recorded: a daemon, not yet let go or just. ready: one that serves."""
    try:
        ledger = (pod / "ledger").read_text()
    except FileNotFoundError:
        ledger = ""
    return {"asked": True, "recorded": '"made"' in ledger, "ready": '"running"' in ledger}[moment]


def test_the_package_is_replaced_under_it(ctr: Ctr, name: str, zygote: Zygote) -> None:
    """The next pod is not of the old code, later ones are forked again, and the pods that are there are left alone."""
    before, after, later = (f"{name}-{when}" for when in ("before", "after", "later"))
    old = zygote.ahead()
    ctr.start(before, "sleep", "86400")
    _replace(next((PREFIX / "lib").glob("python3*/site-packages/kata_shimd/__init__.py")))
    ctr.start(after, "sleep", "86400")
    assert not forked_from(daemon_of(ctr, after), zygote)
    assert "the package was replaced" in zygote.log
    new = zygote.ahead()
    ctr.start(later, "sleep", "86400")
    assert daemon_of(ctr, later).pid == new.pid
    assert forked_from(daemon_of(ctr, later), zygote)
    assert daemon_of(ctr, before).pid == old.pid
    for one in (before, after, later):
        assert ctr.exec(one, "e", "echo", "here").ok().out == "here"
        ctr.remove(one)


def _replace(file: Path) -> None:
    """By another with the same content, as an installer does."""
    new = file.with_suffix(".new")
    shutil.copy2(file, new)
    new.replace(file)


def test_another_installations_zygote_is_passed_over(ctr: Ctr, name: str, host: Host, tmp_path: Path) -> None:
    """The same code under another interpreter's name: its daemons would not be those of this launcher's installation."""
    other = tmp_path / "bin/python3"
    subprocess.run(["/usr/bin/python3", "-m", "venv", "--without-pip", tmp_path], check=True)
    argv = [other, "-m", "kata_shimd.cli", "zygote", "--run-dir", host.run_dir]
    site = next((PREFIX / "lib").glob("python3*/site-packages"))
    child = host.spawn(argv, env={"PYTHONPATH": str(site)}, stderr=subprocess.PIPE)
    try:
        eventually("its socket", (host.run_dir / "zygote.sock").exists, within=PATIENCE)
        ctr.start(name, "sleep", "86400")
        now = daemon_of(ctr, name).stat()
        assert now is not None and now[1] != child.pid
    finally:
        ctr.remove(name)
        child.kill()
        _, said = child.communicate(timeout=30 * SCALE)
        process.finish(child)
        (host.run_dir / "zygote.sock").unlink(missing_ok=True)
    assert b"this zygote is" in said


def test_a_zygote_in_another_namespace_is_passed_over(ctr: Ctr, name: str, host: Host) -> None:
    argv = ["unshare", "--mount", "--", str(PREFIX / "bin/python3"), "-m", "kata_shimd.cli", "zygote"]
    child = host.spawn([*argv, "--run-dir", host.run_dir])
    try:
        eventually("its socket", (host.run_dir / "zygote.sock").exists, within=PATIENCE)
        ctr.start(name, "sleep", "86400")
        now = daemon_of(ctr, name).stat()
        assert now is not None and now[1] != child.pid
    finally:
        ctr.remove(name)
        child.kill()
        process.finish(child)
        (host.run_dir / "zygote.sock").unlink(missing_ok=True)
