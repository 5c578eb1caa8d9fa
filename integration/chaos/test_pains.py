"""The nine pains of Kata's users that are told most often, one test each, in the order of `users.md` §1."""

import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from integration.chaos.moments import SANDBOX, TYPE, Moment, at_create
from integration.chaos.play import play
from integration.chaos.stage import Stage, configuration
from integration.chaos.victims import Victim
from integration.harness import leaks, process
from integration.harness.ctr import PATIENCE
from integration.harness.leaks import Scene
from integration.harness.scale import SCALE
from integration.harness.waiting import eventually

pytestmark = pytest.mark.vm

STAYS: Final = ("sh", "-c", "while :; do sleep 86400; done")
#: Some containers one after the other: where one in three lost its output, as was reported, none gets away.
SHORT_LIVED: Final = 12


def test_pain_1_a_pod_is_never_stuck_terminating(stage: Stage, name: str) -> None:
    """Pain 1: Kill, Delete and State never return, and only SIGKILL of the shim helps. Here the whole guest stands still."""
    stage.ctr.start(name, *STAYS)
    stage.pod(name).process("qemu").signal(signal.SIGSTOP)
    assert stage.shim(name).state(name).exited_at is None
    begin = time.monotonic()
    stage.ctr.kill(name)
    eventually("the task stopped", lambda: stage.ctr.tasks()[name][1] == "STOPPED", within=PATIENCE)
    assert stage.exit_status(name) == 255
    assert time.monotonic() - begin < 30 * SCALE
    stage.remove(name)
    eventually("the daemon's end", lambda: not stage.daemon_lives(name), within=PATIENCE)


def test_pain_2_nothing_is_orphaned_when_the_shim_dies(stage: Stage, scene: Scene, name: str) -> None:
    """Pain 2: QEMU, virtiofsd and litter below /run stay when a part dies. Here our daemon does, in the middle of Create."""
    assert play(stage, scene, Victim.DAEMON, Moment.CREATE, name).complaints == ()


def test_pain_3_a_guest_that_is_not_reached_is_explained(stage: Stage, name: str, tmp_path: Path) -> None:
    """Pain 3: one message, "timed out connecting to vsock", for every cause. Here the guest's kernel cannot start its init."""
    config = tmp_path / "configuration.toml"
    config.write_text(configuration(hypervisor={"kernel_params": "panic_on_oops=1 rdinit=/no/such/init"}))
    done = stage.ctr.run(name, "true", config=config)
    assert done.code == 1
    for told in ("Kernel panic", "QEMU", r"boot: check \d"):
        assert re.search(told, done.err), f"{told} is missing in {done.err}"
    stage.remove(name)
    eventually("the daemon's end", lambda: not stage.daemon_lives(name), within=PATIENCE)
    assert stage.verdict(name).rule == "guest-panic"


def test_pain_4_a_vm_that_was_killed_is_no_success(stage: Stage, name: str) -> None:
    """Pain 4: the host's OOM killer takes QEMU, and the pod is told to have succeeded."""
    client = stage.ctr.spawn(*stage.ctr.run_words(name, *STAYS, options=["--rm", "--null-io"]))
    try:
        stage.await_event(name, "rpc", rpc="Start")
        stage.pod(name).process("qemu").kill()
        assert client.wait(PATIENCE) == 255
    finally:
        process.finish(client)
        stage.remove(name)
    eventually("the daemon's end", lambda: not stage.daemon_lives(name), within=PATIENCE)
    assert stage.verdict(name).rule == "qemu-killed"


def test_pain_5_a_create_that_containerd_forgot_leaves_no_pod(stage: Stage, scene: Scene, name: str) -> None:
    """Pain 5: containerd restarts in the middle of Create, and the pod and its memory are leaked for ever."""
    before = leaks.snapshot(scene)
    at = at_create(stage, name)
    try:
        stage.containerd.kill()
        stage.containerd.start()
        assert at.finish()[0] == 1
    finally:
        at.close()
    eventually("the daemon's end", lambda: not stage.daemon_lives(name), within=PATIENCE)
    assert stage.verdict(name).rule == "abandoned"
    stage.remove(name)
    assert leaks.report(leaks.await_no_leak(scene, before)) == ""
    assert stage.ctr.run(name, "echo", "again").ok().out == "again"


def test_pain_6_an_exec_gets_the_end_of_its_input_and_may_be_idle(stage: Stage, name: str) -> None:
    """Pain 6: exec never gets EOF, or is dead after it was idle for as long as an RPC may take."""
    stage.ctr.start(name, *STAYS)
    assert stage.ctr.exec(name, "eof", "wc", "-c", input=b"12345").ok().out == "5"
    words = ("task", "exec", "--exec-id", "idle", name, "sh", "-c", "echo up; read line; echo $line")
    client = stage.ctr.spawn(*words, stdin=subprocess.PIPE)
    try:
        assert client.stdin is not None and client.stdout is not None
        assert client.stdout.readline() == b"up\n"
        _pass_a_deadline(stage, name)
        client.stdin.write(b"still here\n")
        client.stdin.flush()
        assert client.stdout.readline() == b"still here\n"
        assert client.wait(PATIENCE) == 0
    finally:
        process.finish(client)
        stage.remove(name)


def _pass_a_deadline(stage: Stage, name: str) -> None:
    """Until any RPC to the agent that waits would have failed (10 s × scale in `stage.TIMEOUTS`): a process of the guest counts."""
    seconds = f"{12 * SCALE:.0f}"
    stage.ctr.exec(name, "clock", "sleep", seconds, within=2 * PATIENCE).ok()


def test_pain_7_the_last_output_of_a_short_life_arrives(stage: Stage, name: str) -> None:
    """Pain 7: about one in three short-lived containers lost its last lines. Containers here, and execs, which live as shortly."""
    stage.ctr.start(name, *STAYS, annotations={TYPE: "sandbox", SANDBOX: name})
    expected = "\n".join(str(number) for number in range(1, 2001))
    try:
        for number in range(SHORT_LIVED):
            member = {TYPE: "container", SANDBOX: name}
            assert stage.ctr.run(f"{name}-{number}", "seq", "2000", annotations=member).ok().out == expected
            assert stage.ctr.exec(name, f"short-{number}", "seq", "2000").ok().out == expected
    finally:
        stage.remove(name)


def test_pain_8_starts_that_fail_leave_nothing(stage: Stage, scene: Scene, name: str) -> None:
    """Pain 8: failed starts leak mounts and cgroups, 20,000 mounts in two hours."""
    before = leaks.snapshot(scene)
    for number in range(3):
        assert stage.ctr.run(f"{name}-{number}", "/no/such/program").code == 1
    assert leaks.report(leaks.await_no_leak(scene, before)) == ""


@pytest.fixture
def instead() -> Iterator[Path]:
    """A place for a program in QEMU's stead, where QEMU's user can read it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        Path(directory).chmod(0o755)
        yield Path(directory, "qemu")


@pytest.mark.parametrize(
    ("does", "says"),
    [
        ("echo out of luck >&2; exit 3", ("out of luck", "status 3")),
        ("exec sleep 86400", ("no greeting in", "QEMU lives")),
    ],
    ids=["ends", "mute"],
)
def test_pain_9_a_qemu_that_does_not_come_up_is_told_as_such(
    stage: Stage, name: str, tmp_path: Path, instead: Path, does: str, says: tuple[str, ...]
) -> None:
    """Pain 9: the start hangs at QMP's greeting, and says that it timed out, not whether QEMU has ended, and of what."""
    instead.write_text(f"#!/bin/sh\n{does}\n")
    instead.chmod(0o755)
    config = tmp_path / "configuration.toml"
    config.write_text(configuration(hypervisor={"path": str(instead), "valid_hypervisor_paths": [str(instead)]}))
    done = stage.ctr.run(name, "true", config=config)
    assert done.code == 1
    assert not [word for word in says if word not in done.err], done.err
    assert done.seconds < 20 * SCALE
    stage.remove(name)
    eventually("the daemon's end", lambda: not stage.daemon_lives(name), within=PATIENCE)
    assert stage.verdict(name).rule == "boot-failed", stage.verdict(name)
