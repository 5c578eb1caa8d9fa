"""A host that is slow to answer for files: what ends in the guest has ended, whatever the host has still to say about it."""

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest

from integration.harness import process
from integration.harness.ctr import Ctr
from integration.harness.pods import Pod, pod_hash
from integration.harness.scale import SCALE
from integration.harness.waiting import TooLate, eventually

pytestmark = pytest.mark.vm

#: Well below the time after which a SIGKILL that shows no effect ends the VM, which would be 255.
AT_ONCE: Final = 4.0 * SCALE


def test_a_process_ends_though_its_files_are_not_yet_closed_on_the_host(
    ctr: Ctr, name: str, request: pytest.FixtureRequest
) -> None:
    """Its root must not end with it: with a file still being closed the guest's kernel would kill it on its way out."""
    if not request.config.getoption("--long"):
        pytest.skip(
            "passes on a busy machine; on a quick one the end can wait for virtiofsd (docs/guest-agent.md, Storage)"
        )
    # No open file but the program itself: closing a descriptor waits for the host, giving up a program does not. And nothing after
    # the word that it has not done often before: a page of the program that is still to be read waits for the host as well.
    script = "i=0; while :; do i=$((i+1)); [ $i = 1000 ] && echo up; done"
    client = ctr.spawn(*ctr.run_words(name, "sh", "-c", script, options=["--rm"]))
    pod = Pod(ctr.containerd.host.run_dir, pod_hash(str(ctr.containerd.address), ctr.namespace, name))
    try:
        assert client.stdout is not None and client.stderr is not None
        assert client.stdout.readline() == b"up\n", client.stderr.read()
        share = pod.process("virtiofsd")
        stopped = [share.pid, *_children(share.pid)]
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        try:
            ctr.kill(name).ok()
            status = _status(ctr, name)
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)
        assert status == "STOPPED", "the exit is told while the host says nothing"
        assert client.wait(AT_ONCE * 4) == 137
    finally:
        process.finish(client)
        ctr.remove(name)


def _status(ctr: Ctr, name: str) -> str:
    """What it is when it should long have stopped."""
    # The client removes what has stopped, so it may be gone already.
    with suppress(TooLate):
        eventually("the task has stopped", lambda: _state(ctr, name) == "STOPPED", within=AT_ONCE)
    return _state(ctr, name)


def _state(ctr: Ctr, name: str) -> str:
    return ctr.tasks().get(name, (0, "STOPPED"))[1]


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
