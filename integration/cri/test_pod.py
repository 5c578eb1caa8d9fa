"""A pod's life: sandbox and containers in one machine with one daemon, and the ends of both."""

import pytest

from integration.cri.conftest import STAY, Pods
from integration.harness import cri
from integration.harness import pods as on_disk
from integration.harness.cri import CriContainerd
from integration.harness.crictl import Crictl
from integration.harness.ctr import PATIENCE
from integration.harness.host import Host
from integration.harness.pods import Pod
from integration.harness.waiting import eventually


@pytest.fixture
def pod_of(host: Host, containerd: CriContainerd):
    """Sandbox id → the pod as it stands on disk."""

    def find(pod_id: str) -> Pod:
        return Pod(host.run_dir, on_disk.pod_hash(str(containerd.address), cri.NAMESPACE, pod_id))

    return find


def test_a_container_runs_in_a_pod(pods: Pods, crictl: Crictl) -> None:
    pod_id = pods.run()
    container_id = pods.start(pod_id, *STAY)
    assert crictl.state(container_id) == "CONTAINER_RUNNING"
    assert crictl.exec(container_id, "echo", "hello").ok().out == "hello"
    crictl("stop", "--timeout", "10", container_id).ok()
    assert crictl.state(container_id) == "CONTAINER_EXITED"
    crictl("rm", container_id).ok()
    pods.remove(pod_id)
    assert pod_id not in crictl.pods()


@pytest.mark.v3
@pytest.mark.vm
def test_containers_of_a_pod_share_one_machine_and_one_daemon(pods: Pods, crictl: Crictl, host: Host, pod_of) -> None:
    pod_id = pods.run()
    daemon = pod_of(pod_id).process("daemon")
    boots = []
    for name in ("a", "b"):
        container_id = pods.start(pod_id, *STAY, name=name)
        boots.append(crictl.exec(container_id, "cat", "/proc/sys/kernel/random/boot_id").ok().out)
    assert boots[0] == boots[1]
    assert [pod.name for pod in on_disk.all_pods(host.run_dir)] == [pod_of(pod_id).name]
    assert pod_of(pod_id).process("daemon") == daemon


@pytest.mark.v3
def test_a_new_container_after_the_last_was_removed(pods: Pods, crictl: Crictl) -> None:
    pod_id = pods.run()
    for attempt in range(2):
        container_id = pods.start(pod_id, "sh", "-c", f"exit {attempt}", name=f"c{attempt}")
        assert crictl.await_exit(container_id) == attempt
        crictl("rm", container_id).ok()
    assert crictl.pods()[pod_id] == "SANDBOX_READY"


@pytest.mark.v3
@pytest.mark.vm
def test_the_pod_ends_when_its_sandbox_does(pods: Pods, crictl: Crictl, host: Host, pod_of) -> None:
    """containerd ends the containers first. A sandbox that ends by itself is `test_grouping`'s."""
    pod_id = pods.run()
    container_id = pods.start(pod_id, *STAY)
    qemu, daemon = (pod_of(pod_id).process(what) for what in ("qemu", "daemon"))
    crictl.stopp(pod_id)
    assert crictl.state(container_id) == "CONTAINER_EXITED"
    for ended in (qemu, daemon):
        eventually(f"the end of {ended.command()}", lambda ended=ended: not ended.alive(), within=PATIENCE)
    assert crictl.pods()[pod_id] == "SANDBOX_NOTREADY"


@pytest.mark.vm
def test_a_machine_that_dies_is_told_of(pods: Pods, crictl: Crictl, pod_of) -> None:
    pod_id = pods.run()
    container_id = pods.start(pod_id, *STAY)
    pod_of(pod_id).process("qemu").kill()
    assert crictl.await_exit(container_id) == 255
    eventually("a sandbox that is not ready", lambda: crictl.pods()[pod_id] == "SANDBOX_NOTREADY", within=PATIENCE)


@pytest.mark.vm
def test_a_daemon_that_dies_leaves_nothing(pods: Pods, crictl: Crictl, pod_of) -> None:
    pod_id = pods.run()
    container_id = pods.start(pod_id, *STAY)
    pod_of(pod_id).process("daemon").kill()
    assert crictl.await_exit(container_id) in (137, 255)
    eventually("a sandbox that is not ready", lambda: crictl.pods()[pod_id] == "SANDBOX_NOTREADY", within=PATIENCE)
    pods.remove(pod_id)
    assert pods.run("again") != pod_id
