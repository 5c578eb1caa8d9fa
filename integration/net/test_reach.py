"""Two pods and the bridge they are on reach each other: ping, TCP and UDP, both ways, both families."""

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from integration.harness import cni, echo, process
from integration.harness.ctr import Ctr, Done
from integration.harness.host import Host
from integration.harness.scale import SCALE
from integration.harness.waiting import eventually

PORT = 7000
#: More than a socket's buffers, so that both directions flow at once.
BYTES = 300_000
ECHO = Path(echo.__file__)
#: The host's Python, read-only, in a container: busybox speaks no UDP.
PYTHON = ("/usr:/usr", "/usr/lib:/lib", "/usr/lib64:/lib64", f"{ECHO.parent}:/echo")
IN_POD = ("/usr/bin/python3", "-I", "-S", f"/echo/{ECHO.name}")
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Pod:
    ctr: Ctr
    id: str
    addresses: dict[str, str]

    def run(self, *argv: str) -> Done:
        return self.ctr.exec(self.id, f"x{next(_numbers)}", *argv)


@pytest.fixture(scope="module")
def pods(ctr: Ctr, host: Host, network: cni.Network) -> Iterator[list[Pod]]:
    """Two pods that echo. They boot at the same time."""
    with cni.namespace(host, "pod-a") as first, cni.namespace(host, "pod-b") as second:
        made = []
        clients = []
        for space in (first, second):
            addresses = [address.partition("/")[0] for address in space.add(network)]
            made.append(Pod(ctr, space.name, dict(zip(("4", "6"), addresses, strict=True))))
            options = ["-d", "--null-io", *cni.words([space.path]), *mounts()]
            words = ctr.run_words(space.name, *IN_POD, "serve", str(PORT), options=options)
            clients.append(ctr.spawn(*words))
        try:
            assert [client.wait(45 * SCALE) for client in clients] == [0, 0], [
                client.stderr.read() for client in clients
            ]
            yield made
        finally:
            for client, pod in zip(clients, made, strict=True):
                process.finish(client)
                ctr.remove(pod.id)


@pytest.fixture(scope="module")
def bridge(host: Host, pods: list[Pod]) -> Iterator[dict[str, str]]:
    """The gateway's addresses, where a server of the host's echoes."""
    server = host.spawn([sys.executable, ECHO, "serve", str(PORT)], stdout=subprocess.PIPE)
    assert server.stdout is not None and server.stdout.readline() == b"ready\n"
    yield {"4": "10.88.0.1", "6": "fd88::1"}
    process.finish(server)


def reachable(pod: Pod, address: str) -> None:
    """Duplicate address detection in the guest takes a second before its address may be used."""
    eventually(
        f"{address} answers", lambda: pod.run("ping", "-c", "1", "-W", "2", address).code == 0, within=20 * SCALE
    )


def echoes(pod: Pod, kind: str, address: str) -> None:
    if kind == "ping":
        assert pod.run("ping", "-c", "3", "-w", "20", address).ok().out.count("bytes from") >= 3
    else:
        pod.run(*IN_POD, *asking(kind, address)).ok()


def asking(kind: str, address: str) -> list[str]:
    """The client's words: bulk for TCP, what fits a frame for UDP."""
    return ["ask", kind, address, str(PORT), str(BYTES if kind == "tcp" else 1000)]


def mounts() -> list[str]:
    pairs = (pair.split(":") for pair in PYTHON)
    return [word for src, dst in pairs for word in ("--mount", f"type=bind,src={src},dst={dst},options=rbind:ro")]


@pytest.mark.parametrize("family", ["4", "6"])
@pytest.mark.parametrize("kind", ["ping", "tcp", "udp"])
class TestReach:
    def test_from_pod_to_pod(self, pods: list[Pod], kind: str, family: str) -> None:
        for one, other in (pods, reversed(pods)):
            reachable(one, other.addresses[family])
            echoes(one, kind, other.addresses[family])

    def test_from_pod_to_bridge(self, pods: list[Pod], bridge: dict[str, str], kind: str, family: str) -> None:
        reachable(pods[0], bridge[family])
        echoes(pods[0], kind, bridge[family])

    def test_from_bridge_to_pod(self, host: Host, pods: list[Pod], kind: str, family: str) -> None:
        address = pods[1].addresses[family]
        reachable(pods[0], address)
        if kind == "ping":
            done = host.run(["busybox", "ping", "-c", "3", "-w", "20", address])
        else:
            done = host.run([sys.executable, ECHO, *asking(kind, address)])
        assert done.returncode == 0, (done.stdout.decode(), done.stderr.decode())


def test_the_guest_has_the_gateway_and_the_link_local_address(pods: list[Pod]) -> None:
    out = pods[0].run("sh", "-c", "ip route; ip -6 route; ip addr show eth0").ok().out
    assert "default via 10.88.0.1 dev eth0" in out
    assert "default via fd88::1 dev eth0" in out
    assert "inet6 fe80::" in out


def test_the_guests_link_is_the_namespaces(host: Host, pods: list[Pod]) -> None:
    for pod in pods:
        inside = pod.run("cat", "/sys/class/net/eth0/address", "/sys/class/net/eth0/mtu").ok().out.split()
        done = host.run(["nsenter", f"--net=/run/netns/{pod.id}", "ip", "-json", "link", "show", "eth0"])
        (link,) = json.loads(done.stdout)
        assert inside == [link["address"], str(link["mtu"])]
