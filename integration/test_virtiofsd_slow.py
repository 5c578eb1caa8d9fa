"""A host that is slow to answer for files, or does not answer at all, while a process of the guest ends.

virtio-fs closes a file only when virtiofsd has answered (Linux: who says DESTROY to its server waits for RELEASE as well),
so a process whose program the host does not close stays on its way out for so long.
"""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import pytest

from integration.harness import process
from integration.harness.ctr import Ctr
from integration.harness.pods import Pod, pod_hash
from integration.harness.sandbox import SANDBOX, TYPE
from integration.harness.scale import SCALE

pytestmark = pytest.mark.vm

SOON: Final = 4.0 * SCALE
#: SIGKILL that shows no effect ends the VM after 5 s of the time scale (`shimd.time_scale`); then QEMU and the undo follow.
GIVEN_UP: Final = 15.0 * SCALE
#: No open file but the program itself.
SCRIPT: Final = "i=0; while :; do i=$((i+1)); [ $i = 1000 ] && echo up; done"


def test_a_process_ends_as_soon_as_its_files_are_closed_on_the_host(ctr: Ctr, name: str) -> None:
    """Its root must not end with it: with a file still being closed the guest's kernel would kill it on its way out, for good."""
    other = f"other-{name}"
    ctr.start(name, "sh", "-c", "while :; do sleep 86400; done", annotations={TYPE: "sandbox", SANDBOX: name})
    try:
        within = {TYPE: "container", SANDBOX: name}
        client = ctr.spawn(*ctr.run_words(other, "sh", "-c", SCRIPT, options=["--rm"], annotations=within))
        try:
            _is_up(client)
            with _silent(_pod(ctr, name)):
                ctr.kill(other).ok()
                assert ctr.tasks()[name][1] == "RUNNING", "State is answered while the host says nothing"
            assert client.wait(SOON) == 137
        finally:
            process.finish(client)
            ctr.remove(other)
        again = ctr.run(f"again-{name}", "echo", "well", annotations=within)
        assert (again.code, again.out) == (0, "well"), "the guest's kernel has taken no harm"
    finally:
        ctr.remove(name)


def test_a_host_that_never_answers_costs_the_vm_but_kill_works(ctr: Ctr, name: str) -> None:
    client = ctr.spawn(*ctr.run_words(name, "sh", "-c", SCRIPT))
    try:
        _is_up(client)
        with _silent(_pod(ctr, name)):
            ctr.kill(name).ok()
            status = client.wait(GIVEN_UP)
    finally:
        process.finish(client)
        ctr.remove(name)
    # 137: nothing of the process was left for the host to close, which the guest alone decides.
    assert status in (137, 255)


def _pod(ctr: Ctr, name: str) -> Pod:
    return Pod(ctr.containerd.host.run_dir, pod_hash(str(ctr.containerd.address), ctr.namespace, name))


def _is_up(client: "subprocess.Popen[bytes]") -> None:
    assert client.stdout is not None and client.stderr is not None
    assert client.stdout.readline() == b"up\n", client.stderr.read()


@contextmanager
def _silent(pod: Pod) -> Iterator[None]:
    """virtiofsd says nothing."""
    share = pod.process("virtiofsd")
    stopped = [share.pid, *_children(share.pid)]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
