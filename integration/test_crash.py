"""What dies under a running container, and what everybody sees of it."""

import time
from collections.abc import Iterator
from typing import Final

import pytest

from integration.harness import process
from integration.harness.ctr import Ctr, Done
from integration.harness.events import Events
from integration.harness.pods import Pod, pod_hash
from integration.harness.scale import SCALE
from integration.harness.waiting import eventually

pytestmark = pytest.mark.vm

#: From the death of the machine to the last client's exit code.
NOTICED: Final = 10.0 * SCALE


def pod_of(ctr: Ctr, container_id: str) -> Pod:
    run_dir = ctr.containerd.host.run_dir
    return Pod(run_dir, pod_hash(str(ctr.containerd.address), ctr.namespace, container_id))


@pytest.fixture
def clients(ctr: Ctr, name: str) -> Iterator[list["process.subprocess.Popen[bytes]"]]:
    """A container and an exec in it, each with a client that waits for its exit code."""
    up = "echo up; exec sleep 86400"
    started = [ctr.spawn(*ctr.run_words(name, "sh", "-c", up, options=["--rm"]))]
    try:
        _expect_up(started[0])
        started.append(ctr.spawn("task", "exec", "--exec-id", "second", name, "sh", "-c", up))
        _expect_up(started[1])
        yield started
    finally:
        for client in started:
            process.finish(client)
        ctr.remove(name)


def _expect_up(client: "process.subprocess.Popen[bytes]") -> None:
    assert client.stdout is not None and client.stderr is not None
    assert client.stdout.readline() == b"up\n", client.stderr.read()


def test_every_process_ends_255_when_qemu_is_killed(
    ctr: Ctr, name: str, clients: list["process.subprocess.Popen[bytes]"]
) -> None:
    with Events(ctr) as events:
        pod_of(ctr, name).process("qemu").kill()
        begin = time.monotonic()
        assert [client.wait(NOTICED) for client in clients] == [255, 255]
        assert time.monotonic() - begin < NOTICED
        eventually("both exits", lambda: events.topics(name).count("/tasks/exit") == 2, within=NOTICED)
        exits = [event.fields for event in events.of(name) if event.topic == "/tasks/exit"]
    assert [(exit_["id"], exit_["exit_status"]) for exit_ in exits] == [("second", 255), (name, 255)], "init's is last"


def test_nothing_is_left_when_the_daemon_is_killed(ctr: Ctr, name: str) -> None:
    """containerd sees the connection break and runs `delete`, which undoes the ledger; the leak check looks."""
    ctr.start(name, "sleep", "86400")
    pod = pod_of(ctr, name)
    machine, share = pod.process("qemu"), pod.process("virtiofsd")
    with Events(ctr) as events:
        pod.process("daemon").kill()
        ended = events.until(name, "/tasks/exit", within=NOTICED)[0]
    assert ended.fields["exit_status"] == 137, "what `delete` answers"
    eventually("the task forgotten", lambda: name not in ctr.tasks(), within=NOTICED)
    eventually("machine and share gone", lambda: not machine.alive() and not share.alive(), within=NOTICED)
    assert not pod.directory.exists()
    ctr.remove(name)


def test_the_same_id_runs_again_after_a_crash(ctr: Ctr, name: str) -> None:
    """As soon as containerd has forgotten the task, which it no longer lists while it has it cleaned up."""

    def again() -> Done | None:
        ctr.remove(name)
        done = ctr.run(name, "echo", "again")
        return None if f"task {name}: already exists" in done.err else done

    ctr.start(name, "sleep", "86400")
    pod_of(ctr, name).process("daemon").kill()
    eventually("the task off the list", lambda: name not in ctr.tasks(), within=NOTICED)
    assert eventually("the task forgotten", again, within=NOTICED).ok().out == "again"
