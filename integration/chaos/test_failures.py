"""Single failures, beside the matrix: containerd away, a guest that panics, is full, stands still or never answers, a full host.

In all of them State answers within 2 s where there is a daemon to ask (`probe.Shim.state` asserts it), Kill works, no exit is 0,
no call outlives its deadline (`overdue`), and ``why`` names the cause.
"""

import resource
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import pytest

from integration.chaos.moments import await_lines
from integration.chaos.probe import Shim, overdue
from integration.chaos.stage import Stage, configuration
from integration.harness import process
from integration.harness.ctr import PATIENCE
from integration.harness.pods import Pod, pod_hash
from integration.harness.scale import SCALE
from integration.harness.waiting import eventually
from kata_shimd.debug.story import tell
from kata_shimd.debug.verdict import judge
from kata_shimd.errors import ShimError

pytestmark = pytest.mark.vm

#: A string that doubles for ever: the kernel kills the process, and nothing else of the container is as large.
EATS: Final = """exec awk 'BEGIN { s = "x"; while (1) s = s s }'"""


def ended(stage: Stage, name: str) -> None:
    eventually(f"the end of {name}", lambda: not stage.daemon_lives(name), within=PATIENCE)


def test_output_and_exit_arrive_when_containerd_was_away(
    stage: Stage, name: str, request: pytest.FixtureRequest
) -> None:
    """It is stopped while the container writes, stays away until that has ended, and comes back: seconds, or (--long) minutes."""
    lines = 9000 if request.config.getoption("--long") else 300
    uri, hold = stage.hold_logger(name, "none")
    script = f"i=0; while [ $i -lt {lines} ]; do echo $i; i=$((i+1)); usleep 20000; done; exit 7"
    stage.ctr(*stage.ctr.run_words(name, "sh", "-c", script, options=["--detach", "--log-uri", uri])).ok()
    await_lines(hold, 10)
    stage.containerd.stop()
    try:
        stage.await_event(name, "exited", within=PATIENCE + lines * 0.05)
        assert stage.shim(name).state(name).exit_status == 7
    finally:
        stage.containerd.start()
    assert hold.output.splitlines() == [str(number) for number in range(lines)]
    assert stage.ctr.tasks()[name][1] == "STOPPED"
    assert stage.exit_status(name) == 7
    stage.remove(name)
    ended(stage, name)
    assert stage.verdict(name).rule == "container-exited", stage.verdict(name)
    assert not list(overdue(stage.pod(name).journal()))


def test_a_kernel_that_panics_under_a_container(stage: Stage, name: str) -> None:
    """A privileged container may crash its own kernel, and that is all it crashes."""
    script = "echo c > /proc/sysrq-trigger; sleep 86400"
    done = stage.ctr.run(name, "sh", "-c", script, options=["--privileged"])
    assert done.code == 255, done
    ended(stage, name)
    verdict = stage.verdict(name)
    assert verdict.rule == "guest-panic", verdict
    assert not list(overdue(stage.pod(name).journal()))
    assert "sysrq triggered crash" in verdict.sentence


@pytest.mark.parametrize("options", [["--memory-limit", str(32 << 20)], []], ids=["container", "guest"])
def test_memory_that_is_used_up(stage: Stage, name: str, options: list[str]) -> None:
    """The container's limit, or all that the VM has: the process is killed, and not the agent."""
    done = stage.ctr.run(name, "sh", "-c", EATS, options=options)
    assert done.code == 137, done
    ended(stage, name)
    assert stage.verdict(name).rule == "out-of-memory", stage.verdict(name)
    assert not list(overdue(stage.pod(name).journal()))


def test_qemu_stands_still(stage: Stage, name: str) -> None:
    """SIGSTOP, as a host that swaps would have it: State answers, and Kill does not wait for the guest."""
    client = stage.ctr.spawn(*stage.ctr.run_words(name, "sleep", "86400", options=["--rm", "--null-io"]))
    try:
        stage.await_event(name, "rpc", rpc="Start")
        qemu = stage.pod(name).process("qemu")
        qemu.signal(signal.SIGSTOP)
        assert stage.shim(name).state(name).exited_at is None
        stage.ctr.kill(name)
        assert client.wait(PATIENCE) == 255
        assert not qemu.alive()
    finally:
        process.finish(client)
        stage.remove(name)
    ended(stage, name)
    assert stage.verdict(name).rule in ("kill-escalated", "agent-lost"), stage.verdict(name)
    assert not list(overdue(stage.pod(name).journal()))


def test_a_guest_that_never_answers(stage: Stage, name: str, tmp_path: Path) -> None:
    """Create fails within its deadline, and says what the guest was last heard of."""
    config = tmp_path / "configuration.toml"
    config.write_text(configuration(dial=5, hypervisor={"kernel_params": "rdinit=/bin/sleep -- 86400"}))
    done = stage.ctr.run(name, "true", config=config)
    assert done.code == 1
    ended(stage, name)
    verdict = stage.verdict(name)
    assert verdict.rule in ("boot-failed", "guest-panic"), verdict
    assert "no answer in" in done.err or "panic" in done.err, done.err
    assert not list(overdue(stage.pod(name).journal()))


@pytest.fixture
def small(stage: Stage) -> Iterator[Path]:
    """Run directory of the next pods: a file system of its own, small enough to be filled."""
    where = stage.host.root / "small"
    where.mkdir()
    stage.host.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=755", "tmpfs", where]).check_returncode()
    stage.restart(KATA_SHIMD_RUN_DIR=str(where))
    try:
        yield where
    finally:
        stage.restart()
        stage.host.run(["umount", where]).check_returncode()
        where.rmdir()


def _fill(stage: Stage, where: Path) -> None:
    """To the last byte; dd ends with "no space left"."""
    assert stage.host.run(["dd", "if=/dev/zero", f"of={where}/filler", "bs=4k"]).returncode == 1


def _pod_below(stage: Stage, where: Path, name: str) -> Pod:
    """As we see it: the mount is the private host's alone."""
    inside = stage.host.inside / where.relative_to("/")
    return Pod(inside, pod_hash(str(stage.containerd.address), stage.ctr.namespace, name))


def test_a_full_disk_under_a_running_container(stage: Stage, name: str, small: Path) -> None:
    """Nothing can be written to ledger or journal, and yet everything goes on and is undone."""
    stage.ctr.start(name, "sh", "-c", "while :; do sleep 86400; done")
    pod = _pod_below(stage, small, name)
    daemon = pod.process("daemon")
    _fill(stage, small)
    assert stage.ctr.exec(name, "e", "echo", "goes on").out == "goes on"
    assert Shim(pod.directory).state(name).exited_at is None
    stage.ctr.kill(name).ok()
    eventually("the container ended", lambda: stage.ctr.tasks()[name][1] == "STOPPED", within=PATIENCE)
    assert stage.exit_status(name) == 137
    stage.remove(name)
    eventually("the daemon's end", lambda: not daemon.alive(), within=PATIENCE)
    eventually("the pod directory gone", lambda: not pod.directory.exists(), within=PATIENCE)
    journal = pod.journal()
    assert not list(overdue(journal))
    assert judge(tell(journal, live=False)).rule == "container-exited", "the last words are heard on a full disk"


def test_a_full_disk_when_a_pod_starts(stage: Stage, name: str, small: Path) -> None:
    """It does not start, which is said, and leaves nothing; when there is space it does."""
    _fill(stage, small)
    done = stage.ctr.run(name, "true")
    assert done.code == 1
    assert "No space left on device" in done.err, done.err
    stage.remove(name)
    assert not _pod_below(stage, small, name).directory.exists()
    stage.host.run(["rm", small / "filler"]).check_returncode()
    assert stage.ctr.run(name, "echo", "again").ok().out == "again"


@contextmanager
def _descriptors(pid: int, most: int) -> Iterator[None]:
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def test_a_daemon_without_descriptors(stage: Stage, name: str) -> None:
    """Whoever is connected is served; others are let in when there are descriptors again."""
    stage.ctr.start(name, "sh", "-c", "while :; do sleep 86400; done")
    pod = stage.pod(name)
    daemon = pod.process("daemon")
    used = len(list((daemon.proc / "fd").iterdir()))
    with ExitStack() as connections:
        with _descriptors(daemon.pid, used + 2):
            for _ in range(8):
                sock = connections.enter_context(socket.socket(socket.AF_UNIX))
                sock.connect(str(pod.directory / "shim.sock"))
            eventually("accepting pauses", lambda: "accept: Too many open files" in _log(stage), within=PATIENCE)
            assert stage.ctr.tasks()[name][1] == "RUNNING", "containerd's own connection is served"
            assert stage.verdict(name).rule == "no-descriptors", stage.verdict(name)
            with pytest.raises((OSError, ShimError)):
                stage.shim(name).state(name)
        eventually("State over a new connection", lambda: _answers(stage, name), within=10 * SCALE)
        assert stage.verdict(name).rule == "running", stage.verdict(name)
    stage.ctr.kill(name).ok()
    eventually("the container ended", lambda: stage.ctr.tasks()[name][1] == "STOPPED", within=PATIENCE)
    assert stage.exit_status(name) == 137
    stage.remove(name)
    ended(stage, name)
    assert not list(overdue(stage.pod(name).journal()))


def _log(stage: Stage) -> str:
    return stage.containerd.log_from(0)


def _answers(stage: Stage, name: str) -> bool:
    try:
        return stage.shim(name).state(name).id == name
    except (OSError, ShimError, AssertionError):
        return False
