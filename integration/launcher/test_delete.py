"""`delete`: fast, idempotent, and never the death of a pod that lives."""

import fcntl
import os
import subprocess
import time

import pytest

from integration.harness.process import descendants
from integration.harness.waiting import eventually
from integration.launcher.protobuf import parse
from integration.launcher.shim import Answer, Shim


def check(answer: Answer, pid: int = 0) -> None:
    response = parse("DeleteResponse", answer.ok())
    assert (response.pid, response.exit_status) == (pid, 137)
    assert abs(response.exited_at.seconds + response.exited_at.nanos / 1e9 - time.time()) < 10


def asked(shim: Shim, sandbox: str) -> list[tuple[bytes, bytes]]:
    """The ttrpc frames the stand-in has read: stream id, type and flags; and data."""
    log = shim.pod(sandbox) / "asked"
    rest, frames = log.read_bytes() if log.exists() else b"", []
    while rest:
        end = 10 + int.from_bytes(rest[:4])
        frames.append((rest[4:10], rest[10:end]))
        rest = rest[end:]
    return frames


def test_nothing_was_ever_there(shim: Shim):
    check(shim.delete("s1"))
    assert not shim.run_dir.exists()


def test_a_dead_pod_is_undone(shim: Shim):
    shim.start("s1").ok()
    shim.daemon("s1").kill()
    with subprocess.Popen(["sleep", "1000"]) as vm:
        started = next(process.start for process in descendants() if process.pid == vm.pid)
        shim.record(
            "s1",
            {"op": "plan", "n": 3, "scope": "pod", "kind": "process", "what": "qemu"},
            {"op": "made", "n": 3, "pid": vm.pid, "start": started},
        )
        check(shim.delete("s1"), pid=vm.pid)
        assert vm.wait(10) == -9
    assert shim.left() == []
    check(shim.delete("s1"))
    assert shim.left() == []


@pytest.mark.parametrize("who", ["s1", "c1"])
def test_a_bundle_without_its_spec(shim: Shim, who: str):
    """The address that `start` left still names the pod."""
    shim.start("s1").ok()
    shim.start("c1", "s1").ok()
    shim.daemon("s1").kill()
    (shim.root / "bundles" / who / "config.json").unlink()
    check(shim.delete(who))
    assert shim.left() == []


def test_no_bundle_at_all(shim: Shim):
    shim.start("s1").ok()
    shim.daemon("s1").kill()
    argv = shim.argv("s1", "-bundle", str(shim.root / "gone"), "delete")
    check(shim.run(argv, cwd=shim.root))
    assert shim.left() == []


def test_the_run_directory_is_known_from_the_bundle(shim: Shim):
    """containerd 2 sets variables for `start` alone."""
    shim.start("s1").ok()
    shim.daemon("s1").kill()
    check(shim.delete("s1", KATA_SHIMD_RUN_DIR=""))
    assert shim.left() == []


def test_a_live_daemon_is_asked(shim: Shim):
    shim.start("s1").ok()
    shim.start("c1", "s1").ok()
    check(shim.delete("c1"))
    assert shim.daemon("s1").alive()
    [(header, data)] = asked(shim, "s1")
    assert header == bytes([0, 0, 0, 1, 1, 0]), "stream 1, a unary request"
    request = parse("Request", data)
    assert (request.service, request.method) == ("kata_shimd.v1.Pod", "Abandon")
    assert parse("AbandonRequest", request.payload).id == "c1"
    assert 0 < request.timeout_nano <= 1_000_000_000


def test_a_live_daemon_that_does_not_answer_is_left_alone(shim: Shim):
    shim.start("s1", STAND_IN="deaf").ok()
    before = time.monotonic()
    check(shim.delete("s1"))
    assert time.monotonic() - before < 3
    assert shim.daemon("s1").alive()


def test_a_daemon_that_takes_long_to_die_is_waited_for(shim: Shim):
    """Its sockets are closed, which is why containerd is here, but it has not ended: on a busy host that takes a while."""
    shim.start("s1", STAND_IN="leaving").ok()
    deleting = shim.spawn(
        shim.argv("s1", "-bundle", str(shim.root / "bundles/s1"), "delete"), cwd=shim.root, stdin=subprocess.DEVNULL
    )
    with pytest.raises(subprocess.TimeoutExpired):
        deleting.wait(1)
    (shim.pod("s1") / "leave").write_bytes(b"")
    stdout, stderr = deleting.communicate(timeout=10)
    check(Answer(deleting.returncode, stdout, stderr.decode()))
    assert shim.left() == []


def test_a_daemon_that_is_stopping_is_waited_for(shim: Shim):
    shim.start("s1").ok()
    daemon = shim.daemon("s1")
    shim.record("s1", {"op": "phase", "phase": "stopping"})
    deleting = shim.spawn(
        shim.argv("s1", "-bundle", str(shim.root / "bundles/s1"), "delete"), cwd=shim.root, stdin=subprocess.DEVNULL
    )
    lock = os.open(shim.lock("s1"), os.O_RDWR)
    eventually("delete holds the lock", lambda: not _is_free(lock), within=5)
    os.close(lock)
    daemon.kill()
    stdout, stderr = deleting.communicate(timeout=10)
    check(Answer(deleting.returncode, stdout, stderr.decode()))
    assert shim.left() == []
    assert asked(shim, "s1") == []


def test_a_daemon_that_never_stops_stopping(shim: Shim):
    shim.start("s1").ok()
    shim.record("s1", {"op": "phase", "phase": "stopping"})
    before = time.monotonic()
    check(shim.delete("s1"))
    assert time.monotonic() - before < 4.5
    assert shim.daemon("s1").alive()


def _is_free(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(lock, fcntl.LOCK_UN)
    return True


def test_a_pod_that_somebody_is_busy_with(shim: Shim):
    """The answer comes in time all the same, with a warning."""
    shim.start("s1").ok()
    shim.daemon("s1").kill()
    lock = os.open(shim.lock("s1"), os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    before = time.monotonic()
    answer = shim.delete("s1")
    assert time.monotonic() - before < 5
    os.close(lock)
    assert answer.code == 0 and parse("DeleteResponse", answer.stdout).exit_status == 137
    assert "take lock" in answer.stderr and answer.stderr.count("\n") == 1


def test_stdin_is_not_read(shim: Shim):
    """An open pipe on which nothing ever comes."""
    reader, writer = os.pipe()
    deleting = shim.spawn(shim.argv("s1", "delete"), cwd=shim.bundle("s1"), stdin=reader)
    os.close(reader)
    stdout, stderr = deleting.communicate(timeout=5)
    os.close(writer)
    check(Answer(deleting.returncode, stdout, stderr.decode()))


def test_what_would_not_go_is_a_warning(shim: Shim):
    """containerd gets its answer, and the list stays for the next to try."""
    shim.start("s1").ok()
    shim.daemon("s1").kill()
    shim.record("s1", {"op": "plan", "n": 3, "scope": "pod", "kind": "wormhole"})
    answer = shim.delete("s1")
    assert (answer.code, answer.stderr.count("\n")) == (0, 1)
    assert "wormhole" in answer.stderr
    assert [line["n"] for line in shim.ledger("s1") if line["op"] == "undone"] == [2, 1]
    assert len(shim.left()) == 2


def test_delete_and_start_at_once(shim: Shim):
    """Whichever comes first, the lock file that goes is never held by two."""
    for _ in range(5):
        shim.start("s1").ok()
        shim.daemon("s1").kill()
        deleting = shim.spawn(shim.argv("s1", "delete"), cwd=shim.root / "bundles/s1", stdin=subprocess.DEVNULL)
        shim.start("s1").ok()
        stdout, _ = deleting.communicate(timeout=10)
        assert parse("DeleteResponse", stdout).exit_status == 137
        assert shim.daemon("s1").alive()
        shim.daemon("s1").kill()
        check(shim.delete("s1"))
