"""Pods of the CRI on the node's network: they reach each other over both families, and have the link that CNI made."""

import json

import pytest

from integration.cri.conftest import Pods
from integration.harness.crictl import Crictl
from integration.harness.host import Host
from integration.harness.scale import SCALE
from integration.harness.waiting import eventually

pytestmark = [pytest.mark.vm, pytest.mark.v3]

PORT = "7000"
#: busybox listens on both families, and gives back what comes.
ECHO = ("nc", "-ll", "-p", PORT, "-e", "cat")


def addresses(crictl: Crictl, pod_id: str) -> list[str]:
    network = crictl.inspectp(pod_id)["status"]["network"]
    return [network["ip"], *(more["ip"] for more in network["additionalIps"])]


def test_two_pods_reach_each_other_and_have_their_links(pods: Pods, crictl: Crictl, host: Host) -> None:
    made = [pods.run(name) for name in ("-a", "-b")]
    containers = [pods.start(pod_id, *ECHO) for pod_id in made]
    for container_id, other in zip(containers, reversed(made), strict=True):
        both = addresses(crictl, other)
        assert sorted(":" in address for address in both) == [False, True], both
        for address in both:
            reach(crictl, container_id, address)
    for pod_id, container_id in zip(made, containers, strict=True):
        said = crictl.exec(container_id, "cat", "/sys/class/net/eth0/address", "/sys/class/net/eth0/mtu").ok().out
        link = link_of(crictl, host, pod_id)
        assert said.split() == [link["address"], str(link["mtu"])]


def reach(crictl: Crictl, container_id: str, address: str) -> None:
    """Duplicate address detection takes a second before an address of the guest's may be used."""
    ping = ("ping", "-c", "1", "-W", "2", address)
    eventually(f"{address} answers", lambda: crictl.exec(container_id, *ping).code == 0, within=20 * SCALE)
    said = crictl.exec(container_id, "sh", "-c", f"echo there and back | nc -w 5 {address} {PORT}").ok()
    assert said.out == "there and back"


def link_of(crictl: Crictl, host: Host, pod_id: str) -> dict[str, object]:
    """eth0 as CNI has left it in the pod's namespace on the host."""
    spaces = crictl.inspectp(pod_id)["info"]["runtimeSpec"]["linux"]["namespaces"]
    path = next(space["path"] for space in spaces if space["type"] == "network")
    done = host.run(["nsenter", f"--net={path}", "ip", "-json", "link", "show", "eth0"])
    (link,) = json.loads(done.stdout)
    return dict(link)
