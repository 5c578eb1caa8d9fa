"""`sandbox_cgroup_only`: all that a pod consists of on the host is in the pod's control group, and so under the pod's limits."""

import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from integration.cri.conftest import STAY, Pods
from integration.harness import cri
from integration.harness import pods as on_disk
from integration.harness.cri import CriContainerd
from integration.harness.crictl import Crictl
from integration.harness.ctr import PATIENCE
from integration.harness.host import Host
from integration.harness.pods import Pod
from integration.harness.process import Process
from integration.harness.waiting import eventually
from kata_shimd.host import cgroup

pytestmark = pytest.mark.vm

ONLY = {"io.katacontainers.config.runtime.sandbox_cgroup_only": "true"}
#: What QEMU alone has of its own, at the least.
MACHINE = 40 << 20

#: Runs a pod with annotations; itself, and the id of its container.
Run = Callable[[Mapping[str, str]], tuple[Pod, str]]


@pytest.fixture
def parent() -> Iterator[str]:
    """A group like the kubelet's of a pod; it is the test's, so the test removes it, and what a runtime left in it fails."""
    name = f"kt-{secrets.token_hex(4)}"
    yield f"/{name}"
    for group in filter(Path.exists, tops(name)):
        eventually(
            f"{group} empty", lambda group=group: not any(one.is_dir() for one in group.iterdir()), within=PATIENCE
        )
        group.rmdir()


@pytest.fixture
def run(parent: str, pods: Pods, host: Host, containerd: CriContainerd) -> Run:
    def start(notes: Mapping[str, str]) -> tuple[Pod, str]:
        pod_id = pods.run(annotations=dict(notes), linux={"cgroup_parent": parent})
        container_id = pods.start(pod_id, *STAY)
        return Pod(host.run_dir, on_disk.pod_hash(str(containerd.address), cri.NAMESPACE, pod_id)), container_id

    return start


def tops(below: str) -> list[Path]:
    return [top / below for top in cgroup.hierarchies(Path("/proc/self/mountinfo").read_text())]


def places(process: Process) -> set[str]:
    """Where a process is in the hierarchies in which groups are made."""
    lines = [line.split(":", 2) for line in (process.proc / "cgroup").read_text().splitlines()]
    has_old = any(controllers for _, controllers, _ in lines)
    return {
        path for _, controllers, path in lines if not controllers.startswith("name=") and bool(controllers) == has_old
    }


def test_everything_of_a_pod_is_in_its_group(run: Run, parent: str) -> None:
    pod, _ = run(ONLY)
    for what in ("daemon", "virtiofsd", "qemu"):
        (place,) = places(pod.process(what))
        assert place.startswith(f"{parent}/kata_"), what
    [charged] = [
        file
        for top in tops(place[1:])
        for name in ("memory.usage_in_bytes", "memory.current")
        if (file := top / name).exists()
    ]
    assert int(charged.read_text()) > MACHINE


def test_by_default_it_is_where_containerd_starts_shims(run: Run) -> None:
    """Above the pod's group: what a machine costs beside its containers is not the pod's."""
    pod, _ = run({})
    daemon = places(pod.process("daemon"))
    assert daemon == places(pod.process("qemu")) == places(Process(os.getpid(), 0))


def test_a_killed_daemon_leaves_no_group(run: Run, crictl: Crictl, parent: str) -> None:
    """`delete` kills what is in it, and takes it away; the one above is the kubelet's."""
    pod, container_id = run(ONLY)
    (place,) = places(pod.process("qemu"))
    pod.process("daemon").kill()
    eventually("the group gone", lambda: not any(group.exists() for group in tops(place[1:])), within=PATIENCE)
    assert all(group.is_dir() for group in tops(parent[1:]))
    assert crictl.await_exit(container_id) in (137, 255)
    eventually("containerd has heard", lambda: {*crictl.pods().values()} == {"SANDBOX_NOTREADY"}, within=PATIENCE)
