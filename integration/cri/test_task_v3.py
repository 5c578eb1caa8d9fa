"""The Task API v3 on containerd 2.x: further containers of a pod come without a ``start``, over the sandbox's own address."""

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

pytestmark = [pytest.mark.vm, pytest.mark.v3_alone]


def test_a_pod_of_several_containers(pods: Pods, crictl: Crictl, containerd: CriContainerd) -> None:
    pod_id = pods.run()
    assert (containerd.bundle(cri.NAMESPACE, pod_id) / "address").exists()
    for name in ("a", "b"):
        container_id = pods.start(pod_id, *STAY, name=name)
        assert not (containerd.bundle(cri.NAMESPACE, container_id) / "address").exists(), "it came with a start"
        assert crictl.exec(container_id, "echo", name).ok().out == name
        crictl("stop", "--timeout", "30", container_id).ok()
        assert int(crictl.inspect(container_id)["status"]["exitCode"]) == 0
        crictl("rm", container_id).ok()
    assert crictl.pods()[pod_id] == "SANDBOX_READY"


def test_containerd_restarted(pods: Pods, crictl: Crictl, containerd: CriContainerd) -> None:
    pod_id = pods.run()
    container_id = pods.start(pod_id, *STAY)
    containerd.stop()
    containerd.start()
    assert crictl.pods()[pod_id] == "SANDBOX_READY"
    assert crictl.state(container_id) == "CONTAINER_RUNNING"
    assert crictl.exec(container_id, "echo", "still here").ok().out == "still here"
    crictl("stop", "--timeout", "30", container_id).ok()
    assert int(crictl.inspect(container_id)["status"]["exitCode"]) == 0
    again = pods.start(pod_id, *STAY, name="again")
    assert crictl.state(again) == "CONTAINER_RUNNING"


@pytest.mark.parametrize("victim", ["qemu", "daemon"])
def test_a_death_is_told_of_and_leaves_nothing(
    pods: Pods, crictl: Crictl, containerd: CriContainerd, host: Host, victim: str
) -> None:
    pod_id = pods.run()
    container_id = pods.start(pod_id, *STAY)
    pod = Pod(host.run_dir, on_disk.pod_hash(str(containerd.address), cri.NAMESPACE, pod_id))
    pod.process(victim).kill()
    assert crictl.await_exit(container_id) == 255
    eventually("a sandbox that is not ready", lambda: crictl.pods()[pod_id] == "SANDBOX_NOTREADY", within=PATIENCE)
