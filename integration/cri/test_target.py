"""`kubectl debug --target`: a container that sees the processes of another container of its pod, and not of a third."""

import pytest

from integration.cri.conftest import STAY, Pods
from integration.harness.crictl import Crictl

TARGET = 3
SENTENCE = (
    "it may be meant for any of 2 containers: containerd names a process, and QEMU is that of all; "
    "shareProcessNamespace shows the processes of all"
)
#: A command line that is seen in a list of processes, and ends when it is told.
MARKED = ("sh", "-c", "trap 'exit 0' TERM; while :; do sleep 4321 & wait; done")


def debugger(pods: Pods, pod_id: str, name: str, target: str) -> str:
    options = {"pid": TARGET, "target_id": target}
    return pods.create(pod_id, *STAY, name=name, linux={"security_context": {"namespace_options": options}})


def own(pods: Pods, pod_id: str, name: str) -> str:
    """As the kubelet makes every container of a pod that does not share its processes."""
    return pods.start(pod_id, *MARKED, name=name, linux={"security_context": {"namespace_options": {"pid": 1}}})


@pytest.mark.v3
@pytest.mark.vm
def test_it_sees_the_processes_of_its_target(pods: Pods, crictl: Crictl) -> None:
    """And it may be made again; when the target ends, so do all processes of its namespace."""
    pod_id = pods.run(linux={"security_context": {"namespace_options": {"pid": 1}}})
    target = own(pods, pod_id, "target")
    for name in ("removed", "stays"):
        container_id = debugger(pods, pod_id, name, target)
        crictl.start(container_id)
        seen = crictl.exec(container_id, "ps", "-o", "pid,args").ok().out
        assert "sleep 4321" in seen and "/pause" not in seen, seen
        assert seen.splitlines()[1].split()[:2] == ["1", "sh"], seen
        if name == "removed":
            crictl("rm", "--force", container_id).ok()
    crictl("stop", "--timeout", "10", target).ok()
    assert crictl.await_exit(container_id) == 137


@pytest.mark.vm
def test_it_is_refused_where_the_target_may_be_any_of_several(pods: Pods, crictl: Crictl) -> None:
    pod_id = pods.run(linux={"security_context": {"namespace_options": {"pid": 1}}})
    target = own(pods, pod_id, "target")
    own(pods, pod_id, "sidecar")
    done = crictl("start", debugger(pods, pod_id, "debugger", target))
    assert done.code != 0
    assert SENTENCE in done.err, done
