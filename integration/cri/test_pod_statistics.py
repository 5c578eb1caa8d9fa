"""`crictl statsp`, and the kubelet with it: what containerd tells of a pod as a whole, which it reads on the host."""

import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from integration.cri.conftest import Pods
from integration.cri.test_cgroup import MACHINE, ONLY, tops
from integration.harness.crictl import Crictl
from integration.harness.ctr import PATIENCE
from integration.harness.waiting import eventually

pytestmark = pytest.mark.vm

#: Of the bridge.
GATEWAY = "10.88.0.1"
WRITTEN = 20 << 20
BUSY = ("sh", "-c", "dd if=/dev/zero of=/dev/shm/x bs=1M count=20 2>/dev/null; while :; do :; done")

#: Runs a pod with annotations; its id, and its container's.
Start = Callable[[Mapping[str, str]], tuple[str, str]]


@pytest.fixture
def group() -> Iterator[str]:
    """A pod's group, which the kubelet makes before the pod and removes after it, in every hierarchy."""
    name = f"kt-{secrets.token_hex(4)}"
    made = tops(name)
    for top in made:
        top.mkdir()
    yield f"/{name}"
    for top in made:
        eventually(f"{top} empty", lambda top=top: not any(one.is_dir() for one in top.iterdir()), within=PATIENCE)
        top.rmdir()


@pytest.fixture
def start(group: str, pods: Pods) -> Start:
    def run(notes: Mapping[str, str]) -> tuple[str, str]:
        pod_id = pods.run(annotations=dict(notes), linux={"cgroup_parent": group})
        return pod_id, pods.start(pod_id, *BUSY)

    return run


def number(statistics: Mapping[str, Any], part: str, name: str) -> int:
    return int(statistics.get(part, {}).get(name, {}).get("value", 0))


def of_container(crictl: Crictl, pod_id: str) -> tuple[int, int]:
    """Processor time and memory of the one container, as they stand in the pod's statistics."""
    return of_container_in(crictl.statsp(pod_id))


def of_container_in(whole: Mapping[str, Any]) -> tuple[int, int]:
    [one] = whole["containers"]
    return number(one, "cpu", "usageCoreNanoSeconds"), number(one, "memory", "workingSetBytes")


def received_and_sent(crictl: Crictl, pod_id: str) -> tuple[int, int]:
    network = crictl.statsp(pod_id)["network"]
    return number(network, "defaultInterface", "rxBytes"), number(network, "defaultInterface", "txBytes")


@pytest.mark.parametrize("notes", [{}, ONLY], ids=["default", "only"])
def test_containers_are_the_guests_and_the_pod_is_its_group(
    start: Start, crictl: Crictl, notes: Mapping[str, str]
) -> None:
    """The group is the one on the host, in which there is a machine only where it was put there."""
    pod_id, container_id = start(notes)
    eventually("processor time", lambda: of_container(crictl, pod_id)[0] > 100_000_000, within=PATIENCE)
    eventually("the memory it wrote to", lambda: of_container(crictl, pod_id)[1] > WRITTEN, within=PATIENCE)
    whole = crictl.statsp(pod_id)
    memory, processor = number(whole, "memory", "workingSetBytes"), number(whole, "cpu", "usageCoreNanoSeconds")
    assert [one["attributes"]["id"] for one in whole["containers"]] == [container_id]
    if notes:
        assert memory > MACHINE + WRITTEN
        assert processor > of_container_in(whole)[0]
    else:
        assert (memory, processor) == (0, 0)


def test_its_network_is_counted_on_the_host(start: Start, crictl: Crictl) -> None:
    """At the interface that CNI gave the pod, over which all goes that the guest sends."""
    pod_id, container_id = start({})
    before = received_and_sent(crictl, pod_id)
    crictl.exec(container_id, "ping", "-c", "5", "-s", "1000", GATEWAY).ok()
    for least, now in zip(before, received_and_sent(crictl, pod_id), strict=True):
        assert now - least >= 5 * 1000


def test_a_pod_whose_group_is_not_there_has_none(pods: Pods, crictl: Crictl) -> None:
    """The kubelet makes the group first, and `crictl` does not; nor do we, unless all of the pod is to be in it."""
    pod_id = pods.run(linux={"cgroup_parent": "/kt-is-not-there"})
    done = crictl("statsp", pod_id)
    assert done.code != 0
    assert re.search(r'failed to load sandbox cgroup "?\\?"?/kt-is-not-there', done.err), done
