"""A pod's life through ``crictl``: sandbox, containers, exec, logs, and the way back."""

from integration.cri.conftest import STAY, Pods
from integration.harness.crictl import Crictl


def test_a_container_runs_in_a_pod(pods: Pods, crictl: Crictl) -> None:
    pod_id = pods.run()
    container_id = pods.start(pod_id, *STAY)
    assert crictl.state(container_id) == "CONTAINER_RUNNING"
    assert crictl.exec(container_id, "echo", "hello").ok().out == "hello"
    crictl("stop", container_id).ok()
    assert crictl.state(container_id) == "CONTAINER_EXITED"
    crictl("rm", container_id).ok()
    pods.remove(pod_id)
    assert pod_id not in crictl.pods()
