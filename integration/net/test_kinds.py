"""What a pod's network can be made of: models, kinds of links, sizes, and interfaces that come late."""

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from integration.conftest import PREFIX
from integration.harness import cni
from integration.harness.ctr import Ctr, Done
from integration.harness.host import Host
from integration.harness.pods import Pod, pod_hash
from integration.harness.scale import SCALE
from integration.harness.waiting import eventually
from integration.net.conftest import bridge_of

LATE = 30 * SCALE
_numbers = itertools.count(1)


def exec_in(ctr: Ctr, name: str, *argv: str) -> Done:
    return ctr.exec(name, f"e{next(_numbers)}", *argv)


@pytest.fixture(scope="module")
def jumbo(host: Host) -> Iterator[cni.Network]:
    yield from bridge_of(host, "kt9", "10.89.0.0/24", mtu=9000)


def configured(ctr: Ctr, directory: Path, text: str) -> Ctr:
    file = directory / "configuration.toml"
    file.write_text(text)
    return replace(ctr, config=file)


def model(ctr: Ctr, directory: Path, name: str) -> Ctr:
    return configured(ctr, directory, f'[runtime]\ninternetworking_model = "{name}"\n')


def test_mtu_9000_reaches_the_guest_and_its_frames_the_bridge(
    ctr: Ctr, host: Host, jumbo: cni.Network, name: str
) -> None:
    with cni.namespace(host, "jumbo", jumbo) as space:
        script = "cat /sys/class/net/eth0/mtu; ping -c 2 -w 20 -s 8900 10.89.0.1"
        out = ctr.run(name, "sh", "-c", script, options=cni.words([space.path])).ok().out
    assert out.startswith("9000\n")
    assert "8908 bytes from 10.89.0.1" in out


def test_several_interfaces_each_with_its_routes(
    ctr: Ctr, host: Host, network: cni.Network, jumbo: cni.Network, name: str
) -> None:
    """A bridge's veth, another's, and a macvlan on a third cable; the second has no default route."""
    cni.ip(host, "link", "add", "cable0", "type", "veth", "peer", "name", "cable1")
    try:
        for end in ("cable0", "cable1"):
            cni.ip(host, "link", "set", end, "up")
        cni.ip(host, "addr", "add", "10.90.0.1/24", "dev", "cable1")
        ipam = {
            "type": "host-local", "dataDir": str(host.root / "cni"), "ranges": [[{"subnet": "10.90.0.0/24"}]],
            "routes": [{"dst": "10.91.0.0/16", "gw": "10.90.0.1"}],
        }  # fmt: skip
        macvlan = cni.Network("mv", ({"type": "macvlan", "master": "cable0", "mode": "bridge", "ipam": ipam},))
        ranges = {**jumbo.plugins[0]["ipam"], "routes": []}
        second = cni.Network(jumbo.name, ({**jumbo.plugins[0], "ipam": ranges},))
        with cni.namespace(host, "several", network, second, macvlan) as space:
            script = "ip route; for a in 10.88.0.1 10.89.0.1 10.90.0.1; do ping -c 1 -w 20 $a; done"
            out = ctr.run(name, "sh", "-c", script, options=cni.words([space.path])).ok().out
    finally:
        cni.ip(host, "link", "delete", "cable0")
    assert "default via 10.88.0.1 dev eth0" in out
    assert "10.91.0.0/16 via 10.90.0.1 dev eth2" in out
    assert [f"64 bytes from 10.{net}.0.1" in out for net in (88, 89, 90)] == [True] * 3


def test_a_tap_that_is_there_already_is_the_guests_cable(ctr: Ctr, host: Host, name: str) -> None:
    """On a bridge inside the pod's namespace, as some plugins leave it; the guest's address is on the tap."""
    cni.ip(host, "link", "add", "cable0", "type", "veth", "peer", "name", "up0")
    try:
        cni.ip(host, "addr", "add", "10.94.0.1/24", "dev", "cable0")
        cni.ip(host, "link", "set", "cable0", "up")
        with cni.namespace(host, "tapped") as space:
            cni.ip(host, "link", "set", "up0", "netns", "tapped")
            # The namespace must not answer for the guest.
            cni.inside(host, "tapped", "sysctl", "-q", "-w", "net.ipv4.conf.all.arp_ignore=1")
            for words in (
                "link add br0 type bridge",
                "tuntap add tap0 mode tap",
                "link set up0 master br0",
                "link set tap0 master br0",
                "link set up0 up",
                "link set br0 up",
                "link set tap0 up",
                "addr add 10.94.0.2/24 dev tap0",
            ):
                cni.ip(host, *words.split(), netns="tapped")
            out = ctr.run(name, "ping", "-c", "2", "-w", "20", "10.94.0.1", options=cni.words([space.path])).ok().out
    finally:
        host.run(["ip", "link", "delete", "cable0"])
    assert "64 bytes from 10.94.0.1" in out


def test_the_model_macvtap(ctr: Ctr, host: Host, network: cni.Network, name: str, tmp_path: Path) -> None:
    with cni.namespace(host, "macvtap", network) as space:
        script = "ping -c 2 -w 20 10.88.0.1"
        done = model(ctr, tmp_path, "macvtap").run(name, "sh", "-c", script, options=cni.words([space.path]))
        assert "64 bytes from 10.88.0.1" in done.ok().out


def test_the_model_none_leaves_the_guest_with_its_loopback(
    ctr: Ctr, host: Host, network: cni.Network, name: str, tmp_path: Path
) -> None:
    with cni.namespace(host, "none", network) as space:
        done = model(ctr, tmp_path, "none").run(name, "ls", "/sys/class/net", options=cni.words([space.path]))
        assert done.ok().out.split() == ["lo"]


def test_without_a_path_the_pod_has_a_namespace_of_its_own(ctr: Ctr, host: Host, name: str) -> None:
    """QEMU lives there, and an interface that is put there later is the guest's a moment after: Docker's way."""
    ctr.start(name, "sleep", "86400")
    try:
        pid = ctr.tasks()[name][0]
        theirs = f"/proc/{pid}/ns/net"
        assert Path(theirs).stat().st_ino != Path(f"/proc/{host.pid}/ns/net").stat().st_ino
        assert exec_in(ctr, name, "ls", "/sys/class/net").ok().out.split() == ["lo"]
        put_cable(host, pid)
        eventually("eth0 in the guest", lambda: exec_in(ctr, name, "ip", "addr", "show", "eth0").code == 0, within=LATE)
        eventually("its route", lambda: "via 10.92.0.1" in exec_in(ctr, name, "ip", "route").out, within=LATE)
        assert "64 bytes from 10.92.0.1" in exec_in(ctr, name, "ping", "-c", "2", "-w", "20", "10.92.0.1").ok().out
        cni.ip(host, "link", "delete", "late0")
        eventually("eth0 gone", lambda: exec_in(ctr, name, "ls", "/sys/class/net").out.split() == ["lo"], within=LATE)
    finally:
        ctr.remove(name)


def test_an_idle_network_is_not_looked_at(ctr: Ctr, host: Host, name: str) -> None:
    """What the pod does meanwhile is no reason; an interface that appears is, and the guest has it."""
    ctr.start(name, "sleep", "86400")
    try:
        pod = Pod(host.run_dir, pod_hash(str(ctr.containerd.address), ctr.namespace, name))
        before = looks(host, pod)
        for _ in range(10):
            exec_in(ctr, name, "true").ok()
        assert looks(host, pod) == before
        put_cable(host, ctr.tasks()[name][0])
        eventually("eth0 in the guest", lambda: exec_in(ctr, name, "ip", "addr", "show", "eth0").code == 0, within=LATE)
        assert looks(host, pod) > before
    finally:
        ctr.remove(name)


def looks(host: Host, pod: Pod) -> int:
    """How often the daemon has looked at the pod's namespace, as it says itself."""
    words = ["attach", pod.name, "-c", "shim.network().looks", "--run-dir", host.run_dir]
    done = host.run([PREFIX / "bin/kata-shimd", *words])
    assert done.returncode == 0, done
    return int(done.stdout)


def put_cable(host: Host, pid: int) -> None:
    """As an engine does that knows a task's pid: make a cable, move one end, give it an address and a route."""
    cni.ip(host, "link", "add", "late0", "type", "veth", "peer", "name", "late1")
    cni.ip(host, "addr", "add", "10.92.0.1/24", "dev", "late0")
    cni.ip(host, "link", "set", "late0", "up")
    cni.ip(host, "link", "set", "late1", "netns", str(pid))
    enter = ["nsenter", f"--net=/proc/{pid}/ns/net", "ip"]
    for words in (
        "link set late1 name eth0",
        "link set eth0 up",
        "addr add 10.92.0.2/24 dev eth0",
        "route add default via 10.92.0.1",
    ):
        done = host.run([*enter, *words.split()])
        assert done.returncode == 0, done.stderr.decode()


def test_a_port_of_the_host_leads_to_the_pod(ctr: Ctr, host: Host, network: cni.Network, name: str) -> None:
    """The portmap plugin, as a Kubernetes hostPort: DNAT in the host, which knows nothing of VMs."""
    capable = {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True}
    mapped = cni.Network(network.name, (network.plugins[0], capable))
    with cni.namespace(host, "portmap") as space:
        mapping = [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]
        space.add(mapped, runtimeConfig={"portMappings": mapping})
        ctr.start(name, "sh", "-c", "exec nc -ll -p 80 -e cat", options=cni.words([space.path]))
        try:
            ask = ["sh", "-c", "echo through | busybox nc -w 10 10.88.0.1 8080"]
            eventually("an answer", lambda: host.run(ask).stdout == b"through\n", within=LATE)
        finally:
            ctr.remove(name)


def test_what_undo_takes_away_lets_the_namespace_be_used_again(
    ctr: Ctr, host: Host, network: cni.Network, name: str
) -> None:
    with cni.namespace(host, "again", network) as space:
        for number in range(2):
            done = ctr.run(
                f"{name}-{number}", "ping", "-c", "1", "-w", "20", "10.88.0.1", options=cni.words([space.path])
            )
            assert "64 bytes" in done.ok().out
            assert wires(host, "again") == ({"lo", "eth0"}, False)


@pytest.mark.parametrize("victim", ["daemon", "qemu"])
def test_what_dies_leaves_the_namespace_as_it_was(
    ctr: Ctr, host: Host, network: cni.Network, name: str, victim: str
) -> None:
    """The redirection hangs on a link that is the plugin's: nothing but undoing takes it away."""
    with cni.namespace(host, "killed", network) as space:
        ctr.start(name, "sleep", "86400", options=cni.words([space.path]))
        try:
            assert "ingress" in cni.inside(host, "killed", "tc", "qdisc", "show", "dev", "eth0")
            pod = Pod(host.run_dir, pod_hash(str(ctr.containerd.address), ctr.namespace, name))
            pod.process(victim).kill()
        finally:
            ctr.remove(name)
        eventually("the redirection gone", lambda: wires(host, "killed") == ({"lo", "eth0"}, False), within=LATE)


def wires(host: Host, netns: str) -> tuple[set[str], bool]:
    links = json.loads(cni.ip(host, "-json", "link", "show", netns=netns))
    return {link["ifname"] for link in links}, "ingress" in cni.inside(host, netns, "tc", "qdisc", "show")
