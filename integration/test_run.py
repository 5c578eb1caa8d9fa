"""``ctr run``: a container's process sees what its spec says, on the guest's kernel, and its exit code comes back."""

import os
from pathlib import Path

import pytest

from integration.harness import process
from integration.harness.ctr import PATIENCE, Ctr
from integration.harness.spec import Spec
from integration.harness.waiting import eventually


@pytest.mark.vm
@pytest.mark.parametrize("source", ["image", "rootfs"])
def test_the_guest_kernel_answers(ctr: Ctr, name: str, rootfs_dir: Path, source: str) -> None:
    done = ctr.run(name, "uname", "-r", rootfs=rootfs_dir if source == "rootfs" else None).ok()
    assert done.out
    assert done.out != os.uname().release


@pytest.mark.parametrize("code", [0, 1, 7])
def test_the_exit_code_comes_back(ctr: Ctr, name: str, code: int) -> None:
    assert ctr.run(name, "sh", "-c", f"exit {code}").code == code


def test_a_rootfs_directory_runs(ctr: Ctr, name: str, rootfs_dir: Path) -> None:
    assert ctr.run(name, "cat", "/etc/group", rootfs=rootfs_dir).ok().out.startswith("root:x:0:")


def test_both_streams_arrive_apart(ctr: Ctr, name: str) -> None:
    done = ctr.run(name, "sh", "-c", "echo to-out; echo to-err >&2").ok()
    assert (done.out, done.err) == ("to-out", "to-err")


def test_the_environment_of_image_and_request(ctr: Ctr, name: str) -> None:
    out = ctr.run(name, "env", options=["--env", "FROM_REQUEST=a b"]).ok().out.splitlines()
    assert "FROM_IMAGE=yes" in out
    assert "FROM_REQUEST=a b" in out


def test_the_spec_is_honoured(ctr: Ctr, name: str, rootfs_dir: Path, tmp_path: Path) -> None:
    script = "pwd; id -u; id -g; id -G; hostname; touch /x 2>&1; touch /tmp/x && echo tmp is writable"
    spec = Spec.default(ctr, rootfs_dir, "sh", "-c", script)
    spec.set("process.cwd", "/home/app").set("hostname", "some-host").set("root.readonly", True)
    spec.set("process.user", {"uid": 1000, "gid": 1000, "additionalGids": [2000]})
    spec.content["mounts"].append({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["mode=1777"]})
    cwd, uid, gid, groups, hostname, touched, tmp = spec.run(ctr, name, tmp_path).ok().out.splitlines()
    assert (cwd, uid, gid, hostname) == ("/home/app", "1000", "1000", "some-host")
    assert set(groups.split()) == {"1000", "2000"}
    assert "Read-only file system" in touched
    assert tmp == "tmp is writable"


def test_the_root_is_writable_and_gone_afterwards(ctr: Ctr, name: str) -> None:
    assert ctr.run(name, "sh", "-c", "echo kept > /file && cat /file").ok().out == "kept"
    assert ctr.run(f"{name}-again", "cat", "/file").code == 1


def test_a_program_that_is_not_there(ctr: Ctr, name: str) -> None:
    done = ctr.run(name, "/no/such/program")
    assert done.code != 0
    assert "/no/such/program" in done.err


def run_until_killed(ctr: Ctr, name: str, signal: str, *argv: str) -> int:
    """Start, wait for the first line of output, signal; the exit code of ``ctr run``."""
    client = ctr.spawn(*ctr.run_words(name, *argv, options=["--rm"]))
    try:
        assert client.stdout is not None
        assert client.stdout.readline() == b"up\n", client.stderr and client.stderr.read()
        ctr.kill(name, signal).ok()
        return client.wait(PATIENCE)
    finally:
        process.finish(client)


def test_a_shell_that_traps_term_exits_143(ctr: Ctr, name: str) -> None:
    script = "trap 'exit 143' TERM; echo up; while :; do sleep 0.1; done"
    assert run_until_killed(ctr, name, "SIGTERM", "sh", "-c", script) == 143


@pytest.mark.vm
def test_term_without_a_handler_kills(ctr: Ctr, name: str) -> None:
    """Init of a pid namespace ignores it; Kata's agent makes it SIGKILL, so that a pod's stop need not wait."""
    assert run_until_killed(ctr, name, "SIGTERM", "sh", "-c", "echo up; exec sleep 86400") == 137


def test_kill_is_137(ctr: Ctr, name: str) -> None:
    assert run_until_killed(ctr, name, "SIGKILL", "sh", "-c", "echo up; exec sleep 86400") == 137


def test_a_task_that_ended_can_be_seen_and_deleted(ctr: Ctr, name: str) -> None:
    ctr.start(name, "sh", "-c", "exit 5")
    try:
        eventually("the task's end", lambda: ctr.tasks()[name][1] == "STOPPED", within=PATIENCE)
        assert "exit code 5" in ctr.delete_task(name).ok().err
        assert name not in ctr.tasks()
    finally:
        ctr.remove(name)
