"""Whole lives of containers and execs while daemons die; and ends that come while no daemon is there."""

import ctypes
import fcntl
import os
import signal
import socket
import stat
import struct
import subprocess
import termios
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from integration.harness import process
from integration.harness.ctr import PATIENCE, Ctr
from integration.harness.events import Events
from integration.harness.pods import Pod, pod_hash
from integration.harness.waiting import eventually
from integration.keeper.killing import REBORN, Noticed, Stopped, kill_daemon
from kata_shimd.debug import pods

pytestmark = pytest.mark.vm

#: For so many seconds nobody comes: much longer than it takes to tell of an end.
AWAY: Final = 3.0

libc = ctypes.CDLL(None)
PIDFD_GETFD = 438


@pytest.fixture
def container(kept: Ctr, name: str) -> str:
    kept.start(name, "sh", "-c", "while :; do sleep 86400; done")
    yield name
    kept.remove(name)


def test_an_exec_goes_on_and_its_exit_code_comes_back(
    kept: Ctr, container: str, pod_of: Callable[[str], Pod], unnoticed: Noticed
) -> None:
    script = "echo up; read line; echo $line; exit 9"
    running = kept.spawn("task", "exec", "--exec-id", "e1", container, "sh", "-c", script, stdin=subprocess.PIPE)
    try:
        assert running.stdout is not None and running.stdin is not None
        assert running.stdout.readline() == b"up\n"
        kill_daemon(pod_of(container))
        running.stdin.write(b"through a new daemon\n")
        running.stdin.flush()
        assert running.stdout.readline() == b"through a new daemon\n"
        assert running.wait(PATIENCE) == 9
    finally:
        process.finish(running)
    unnoticed.deletions = 1


def test_verbs_after_a_death(kept: Ctr, container: str, pod_of: Callable[[str], Pod], unnoticed: Noticed) -> None:
    known = shown(pod_of(container))
    kill_daemon(pod_of(container))
    assert kept.exec(container, "e1", "sh", "-c", "echo out; exit 3").code == 3
    kept("task", "pause", container).ok()
    kill_daemon(pod_of(container))
    assert kept.tasks()[container][1] == "PAUSED"
    kept("task", "resume", container).ok()
    kill_daemon(pod_of(container))
    assert kept.tasks()[container][1] == "RUNNING"
    assert kept.exec(container, "e2", "true").code == 0
    assert shown(pod_of(container)) == known
    unnoticed.deletions = 1


def shown(pod: Pod) -> tuple[tuple[str, ...], int | None, str]:
    """What `kata-shimd ps` has of it that no death changes."""
    found = pods.load(pod.run_dir, pod.name)
    return found.containers, found.began_ns, found.phase


#: Its outputs end before it does, so the daemon that dies has asked for its end, and the answer waits for the next one.
ENDS_LAST: Final = "echo up; exec >&- 2>&-; until [ -e /seen/next ]; do sleep 0.1; done; touch /seen/over; exit 42"
#: For the end of this one only the next daemon asks.
ENDS_FIRST: Final = "echo up; until [ -e /seen/go ]; do sleep 0.1; done; touch /seen/next; exit 9"


def test_ends_while_no_daemon_is_there(
    kept: Ctr, name: str, pod_of: Callable[[str], Pod], unnoticed: Noticed, tmp_path: Path
) -> None:
    """An exec ends, and then its container: both with their code, and at the time when they ended."""
    seen = tmp_path / "seen"
    seen.mkdir()
    options = ["--rm", "--mount", f"type=bind,src={seen},dst=/seen,options=rbind:rw"]
    words = [
        kept.run_words(name, "sh", "-c", ENDS_LAST, options=options),
        ("task", "exec", "--exec-id", "e1", name, "sh", "-c", ENDS_FIRST),
    ]
    waiting: list[subprocess.Popen[bytes]] = []
    try:
        for one in words:
            waiting.append(kept.spawn(*one))
            assert waiting[-1].stdout is not None
            assert waiting[-1].stdout.readline() == b"up\n"
        with Events(kept) as events:
            before, over = _end_unseen(pod_of(name), seen)
            assert [one.wait(PATIENCE) for one in waiting] == [42, 9]
            told = [event.fields for event in events.until(name, "/tasks/delete") if event.topic == "/tasks/exit"]
        assert [fields["id"] for fields in told] == ["e1", name]
        for fields in told:
            assert before < datetime.fromisoformat(fields["exited_at"]) < over + timedelta(seconds=AWAY / 2)
    finally:
        for one in waiting:
            process.finish(one)
    unnoticed.deletions = 1


def _end_unseen(pod: Pod, seen: Path) -> tuple[datetime, datetime]:
    """Kill the daemon with the keeper stopped, so that nobody comes, and let what runs end. From when to when that was."""
    keeper, daemon = pod.process("keeper"), pod.process("daemon")
    with Stopped(keeper):
        daemon.kill()
        eventually("the daemon's end", lambda: not daemon.alive(), within=REBORN)
        before = datetime.now(UTC)
        (seen / "go").touch()
        eventually("the end", (seen / "over").exists, within=PATIENCE)
        over = datetime.now(UTC)
        eventually("the guest's word of it", lambda: _said(keeper, pod) > 0, within=PATIENCE)
        time.sleep(AWAY)
    return before, over


def _said(keeper: process.Process, pod: Pod) -> int:
    """Bytes that the guest's agent has said and nobody has taken: the channel is held by the keeper."""
    pidfd = os.pidfd_open(keeper.pid)
    try:
        return sum(_unread(pidfd, int(fd.name), pod) for fd in Path(f"/proc/{keeper.pid}/fd").iterdir())
    finally:
        os.close(pidfd)


def _unread(pidfd: int, number: int, pod: Pod) -> int:
    fd = libc.syscall(PIDFD_GETFD, pidfd, number, 0)
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            return 0
        with socket.socket(fileno=os.dup(fd)) as channel:
            if channel.getpeername() != str(pod.directory / "agent.sock"):
                return 0
            return struct.unpack("i", fcntl.ioctl(channel, termios.FIONREAD, bytes(4)))[0]
    except OSError:  # it has no peer
        return 0
    finally:
        os.close(fd)  # while one is ours, a FIFO has no end for whoever reads it


def test_containerd_killed_while_no_daemon_is_there(own: Ctr, name: str) -> None:
    """The next daemon finds its connection ended, and the next containerd finds the daemon."""
    own.start(name, "sh", "-c", "while :; do sleep 86400; done")
    pod = Pod(Path(own.containerd.host.run_dir), pod_hash(str(own.containerd.address), own.namespace, name))
    with Stopped(pod.process("keeper")):
        pod.process("daemon").kill()
        own.containerd.kill()
    own.containerd.start()
    assert own.tasks()[name][1] == "RUNNING"
    assert own.exec(name, "e1", "sh", "-c", "exit 6").code == 6
    with Events(own) as events:
        own.kill(name, "SIGTERM").ok()
        own.kill(name, "SIGKILL")
        ended = events.until(name, "/tasks/exit", within=PATIENCE)[-1]
        assert ended.fields["exit_status"] in (137, 143)
    own.remove(name)
    eventually("nothing left of the pod", lambda: not pod.directory.exists(), within=PATIENCE)


def test_the_machine_killed_while_no_daemon_is_there(kept: Ctr, name: str, pod_of: Callable[[str], Pod]) -> None:
    waiting = kept.spawn(*kept.run_words(name, "sh", "-c", "echo up; sleep 86400", options=["--rm"]))
    try:
        assert waiting.stdout is not None
        assert waiting.stdout.readline() == b"up\n"
        pod = pod_of(name)
        with Stopped(pod.process("keeper")):
            pod.process("daemon").kill()
            pod.process("qemu").kill()
        assert waiting.wait(PATIENCE) == 255
    finally:
        process.finish(waiting)


def test_a_keeper_that_dies_is_replaced(
    kept: Ctr, container: str, pod_of: Callable[[str], Pod], unnoticed: Noticed
) -> None:
    pod = pod_of(container)
    for _ in range(3):
        old = pod.process("keeper")
        old.kill()
        eventually("another keeper", partial(_is_other, pod, old), within=REBORN)
        kill_daemon(pod)
        assert kept.tasks()[container][1] == "RUNNING"
    assert kept.exec(container, "e1", "true").code == 0
    unnoticed.deletions = 1


def _is_other(pod: Pod, old: process.Process) -> bool:
    try:
        return pod.process("keeper") != old
    except LookupError:
        return False


def _dies(kept: Ctr, name: str, pod: Pod, events: Events) -> None:
    """containerd's delete has taken everything away, and the task has not ended with 0."""
    ended = events.until(name, "/tasks/exit", within=PATIENCE)[-1]
    assert ended.fields["exit_status"] == 137, "what `delete` answers"
    eventually("nothing left of the pod", lambda: not pod.directory.exists(), within=PATIENCE)
    kept.remove(name)


def test_keeper_and_daemon_killed_at_once_is_a_dead_shim(kept: Ctr, name: str, pod_of: Callable[[str], Pod]) -> None:
    """Nobody is left to go on."""
    kept.start(name, "sleep", "86400")
    pod = pod_of(name)
    keeper, daemon = pod.process("keeper"), pod.process("daemon")
    with Events(kept) as events:
        with Stopped(keeper):
            daemon.kill()
            keeper.kill()
        _dies(kept, name, pod, events)


def test_daemons_that_die_too_fast_are_given_up(
    ctr: Ctr, name: str, pod_of: Callable[[str], Pod], tmp_path: Path
) -> None:
    config = tmp_path / "configuration.toml"
    config.write_text('[shimd]\nkeeper = "launcher"\nkeeper_deaths = 3\nkeeper_seconds = 600\n')
    ctr.start(name, "sleep", "86400", config=config)
    pod = pod_of(name)
    with Events(ctr) as events:
        for _ in range(3):
            kill_daemon(pod)
        assert ctr.tasks()[name][1] == "RUNNING"
        pod.process("daemon").kill()
        _dies(ctr, name, pod, events)


def test_sigterm_still_ends_the_pod(kept: Ctr, container: str, pod_of: Callable[[str], Pod]) -> None:
    pod = pod_of(container)
    kill_daemon(pod)
    pod.process("daemon").signal(signal.SIGTERM)
    eventually("nothing left of the pod", lambda: not pod.directory.exists(), within=PATIENCE)
