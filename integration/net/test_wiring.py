"""Wires without a VM: every kind of link is given a device, frames pass both ways, and undoing leaves the link as it was.

The far end of a wire is QEMU's; here the test holds it, and reads and writes frames.
"""

import asyncio
import os
import select
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from integration.harness import cni
from integration.harness.host import Host
from integration.harness.install import REPOSITORY
from integration.net.scene import LAUNCHER, Guest, Scene
from kata_shimd.errors import FailedPrecondition, HostFailed, ShimError, Unimplemented, VmFailed
from kata_shimd.ledger import Ledger
from kata_shimd.net.network import PodNetwork, Settings
from kata_shimd.net.plan import Model
from kata_shimd.pod.network import Nic

#: virtio_net_hdr of 10 bytes, which stands before each frame.
HEADER = 10
BROADCAST = b"\xff" * 6
#: An EtherType that nobody answers (IEEE 802, local experiments).
EXPERIMENT = b"\x88\xb5"


@pytest.fixture
def scene(host: Host, name: str, tmp_path: Path) -> Iterator[Scene]:
    """A namespace with both ends of a cable: ``eth0`` is the pod's, ``peer`` stands for the rest of the world."""
    short = name[-12:].strip("-")
    with cni.namespace(host, short):
        made = Scene(host, short, tmp_path)
        made.ip("link add eth0 type veth peer name peer")
        yield made


@pytest.fixture(scope="module", autouse=True)
def module_leaves_nothing() -> None:
    """No containers here; each test compares its own namespace."""


@pytest.fixture(autouse=True)
def leaves_nothing() -> None:
    """As above."""


def veth(scene: Scene) -> str:
    scene.ip("link set eth0 mtu 9000 up")
    scene.ip("link set peer mtu 9000 up")
    return "peer"


def macvlan(scene: Scene) -> str:
    veth(scene)
    scene.ip("link add mv0 link eth0 type macvlan mode bridge")
    scene.ip("link set mv0 up")
    return "peer"


def macvtap(scene: Scene) -> str:
    veth(scene)
    scene.ip("link add mt0 link eth0 type macvtap mode bridge")
    scene.ip("link set mt0 up")
    return "peer"


#: How a kind of link is made, its name, and the way its frames go under each model. ipvlan and vlan are not in every kernel,
#: and are left to the unit tests.
KINDS: dict[str, tuple[Callable[[Scene], str], str, dict[Model, str]]] = {
    "veth": (veth, "eth0", {Model.TCFILTER: "mirror", Model.MACVTAP: "macvtap"}),
    "macvlan": (macvlan, "mv0", {Model.TCFILTER: "mirror", Model.MACVTAP: "mirror"}),
    "macvtap": (macvtap, "mt0", {Model.TCFILTER: "open-macvtap", Model.MACVTAP: "open-macvtap"}),
}


def frame(source: str, payload: bytes) -> bytes:
    return BROADCAST + bytes.fromhex(source.replace(":", "")) + EXPERIMENT + payload.ljust(60, b"\0")


def read_frame(fd: int, payload: bytes) -> bytes:
    """The frame with this payload, among others that the kernel sends by itself."""
    for _ in range(1000):
        ready, _, _ = select.select([fd], [], [], 10)
        assert ready, "no frame came"
        data = os.read(fd, 65536)
        if payload in data:
            return data
    raise AssertionError("only other frames came")


#: Sends one frame at a link and prints one that comes in there: run inside the namespace.
SEND = """
import socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)); s.bind((sys.argv[1], 0)); s.settimeout(10)
s.send(bytes.fromhex(sys.argv[2]))
"""
RECEIVE = """
import socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)); s.bind((sys.argv[1], 0)); s.settimeout(10)
print("ready", flush=True)
while sys.argv[2].encode() not in (data := s.recv(65536)): pass
print(data.hex())
"""


async def passes_both_ways(scene: Scene, nic: Nic, far: str) -> None:
    fd = nic.fds[0]
    cni.inside(scene.host, scene.name, "python3", "-c", SEND, far, frame("02:00:00:00:00:99", b"to the guest").hex())
    assert await asyncio.to_thread(read_frame, fd, b"to the guest")
    enter = ["ip", "netns", "exec", scene.name]
    receiver = scene.host.spawn([*enter, "python3", "-c", RECEIVE, far, "from the guest"], stdout=subprocess.PIPE)
    assert receiver.stdout is not None
    try:
        assert receiver.stdout.readline() == b"ready\n"
        os.write(fd, bytes(HEADER) + frame(nic.mac, b"from the guest"))
        got = await asyncio.to_thread(receiver.stdout.readline)
        assert bytes.fromhex(got.decode())[6:12].hex(":") == nic.mac
    finally:
        receiver.kill()
        receiver.wait()
        receiver.stdout.close()


@pytest.mark.parametrize("model", [Model.TCFILTER, Model.MACVTAP])
@pytest.mark.parametrize("kind", KINDS)
async def test_frames_pass_both_ways_and_undoing_leaves_the_link_as_it_was(
    scene: Scene, kind: str, model: Model
) -> None:
    make, name, ways = KINDS[kind]
    far = make(scene)
    scene.ip(f"addr add 10.7.0.2/24 dev {name}")
    before = scene.state()
    network = await scene.open(model=model)
    try:
        [nic] = network.nics
        [(_, noted)] = scene.notes
        assert (noted["link"], noted["kind"], noted["way"]) == (name, kind, ways[model])
        link = next(link for link in scene.links() if link["ifname"] == name)
        assert nic.mac == link["address"]
        await passes_both_ways(scene, nic, far)
    finally:
        network.hand_over()
        network.close()
    scene.undo()
    assert scene.state() == before


async def test_a_tap_is_handed_on_and_stays(scene: Scene) -> None:
    scene.ip("tuntap add tap0 mode tap")
    scene.ip("addr add 10.7.0.2/24 dev tap0")
    scene.ip("link set tap0 up")
    network = await scene.open()
    [nic] = network.nics
    assert nic.mac not in {link["address"] for link in scene.links()}
    await passes_both_ways(scene, nic, "tap0")
    network.hand_over()
    network.close()
    scene.undo()
    assert "tap0" in {link["ifname"] for link in scene.links()}


@pytest.mark.parametrize("queues", [1, 4])
async def test_several_interfaces_with_all_that_the_guest_is_told(scene: Scene, queues: int) -> None:
    veth(scene)
    macvlan_of_peer = "link add mv0 link peer type macvlan mode bridge"
    for words in (
        macvlan_of_peer,
        "link set mv0 mtu 1400 up",
        "addr add 10.7.0.2/24 dev eth0",
        "addr add fd07::2/64 dev eth0 nodad",
        "addr add 10.8.0.2/24 dev mv0",
        "route add default via 10.7.0.1",
        "route add 10.9.0.0/16 via 10.8.0.1 mtu 1300",
        "-6 route add default via fd07::1",
        "neigh add 10.7.0.1 lladdr 02:00:00:00:00:01 dev eth0 nud permanent",
    ):
        scene.ip(words)
    network, guest = await scene.open(queues=queues), Guest()
    await network.tell(guest)
    assert [len(nic.fds) for nic in network.nics] == [queues, queues]
    network.hand_over()
    network.close()
    told = guest.network
    assert [(item.name, item.mtu, len(item.addresses)) for item in told.interfaces] == [
        ("eth0", 9000, 2),
        ("mv0", 1400, 1),
    ]
    assert {(route.device, route.destination, route.gateway, route.mtu) for route in told.routes} == {
        ("eth0", "", "10.7.0.1", 0),
        ("mv0", "10.9.0.0/16", "10.8.0.1", 1300),
        ("eth0", "", "fd07::1", 0),
    }
    assert [(item.ip, item.mac) for item in told.neighbours] == [("10.7.0.1", "02:00:00:00:00:01")]
    scene.undo()


async def test_a_tap_says_nothing_to_the_guest_by_itself(scene: Scene) -> None:
    """No address of the host's is on it, so the host's kernel solicits no routers there."""
    veth(scene)
    scene.ip("addr add 10.7.0.2/24 dev eth0")
    network = await scene.open()
    assert scene.ip("-oneline addr show dev tap0_kata") == ""
    network.hand_over()
    network.close()
    scene.undo()


async def refused(scene: Scene, error: type[ShimError], says: str, **how: Any) -> None:
    before = scene.state()
    with pytest.raises(error, match=says):
        await scene.open(**how)
    scene.undo()
    assert scene.state() == before


async def test_an_interface_without_an_address(scene: Scene) -> None:
    veth(scene)
    await refused(scene, HostFailed, r"no interface has an address \(.*eth0.*\)", needs_address=True)


async def test_an_interface_that_no_vm_can_be_given(scene: Scene) -> None:
    scene.ip("link add br0 type bridge")
    scene.ip("addr add 10.7.0.1/24 dev br0")
    await refused(scene, Unimplemented, "connect network interface: br0: it is of kind bridge")


async def test_a_link_whose_frames_somebody_takes_already(scene: Scene) -> None:
    veth(scene)
    scene.ip("addr add 10.7.0.2/24 dev eth0")
    cni.inside(scene.host, scene.name, "tc", "qdisc", "add", "dev", "eth0", "ingress")
    await refused(scene, FailedPrecondition, "eth0: it has an ingress queueing discipline already")


async def test_a_link_that_a_macvtap_cannot_have_to_itself(scene: Scene) -> None:
    macvlan(scene)
    scene.ip("addr add 10.7.0.2/24 dev eth0")
    await refused(scene, HostFailed, "make macvtap: tap0_kata: ", model=Model.MACVTAP)


async def test_a_tap_that_somebody_holds(scene: Scene) -> None:
    scene.ip("tuntap add tap0 mode tap")
    scene.ip("addr add 10.7.0.2/24 dev tap0")
    before = scene.state()
    first = await scene.open()
    with pytest.raises(HostFailed, match="open tap: tap0: Device or resource busy; does another process use it"):
        await scene.open()
    first.hand_over()
    first.close()
    scene.undo()
    assert scene.state() == before


async def following(network: PodNetwork, guest: Guest, work: Callable[[], Awaitable[None]]) -> None:
    ended = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(network.follow(guest, guest, ended.wait))
        await work()
        ended.set()


async def test_an_interface_that_comes_and_goes_while_the_pod_runs(scene: Scene) -> None:
    network, guest = await scene.open(), Guest()
    network.hand_over()

    async def come_and_go() -> None:
        veth(scene)
        scene.ip("addr add 10.7.0.2/24 dev eth0")
        async with asyncio.timeout(10):
            await guest.happened.wait()
        guest.happened.clear()
        assert guest.plugged == [f"net{next(link['ifindex'] for link in scene.links() if link['ifname'] == 'eth0')}"]
        scene.ip("link delete eth0")
        async with asyncio.timeout(10):
            await guest.happened.wait()

    await following(network, guest, come_and_go)
    network.close()
    assert guest.plugged == []
    assert [interface.name for interface in guest.network.interfaces] == ["eth0"]
    assert [event for event, _ in scene.notes] == ["nic", "nic-lost"]
    scene.undo()
    assert [link["ifname"] for link in scene.links()] == ["lo"]


async def test_a_device_that_the_vm_does_not_take_leaves_nothing_and_is_tried_again(scene: Scene) -> None:
    veth(scene)
    before = scene.state()
    network, guest = await scene.open(), Guest()
    network.hand_over()
    full = [True]

    class Full(Guest):
        async def plug_nic(self, nic: Nic) -> str:
            if full:
                full.clear()
                raise VmFailed("plug network device", nic.id, "no PCIe root port is free")
            self.happened.set()
            return await super().plug_nic(nic)

    guest = Full()

    async def twice() -> None:
        scene.ip("addr add 10.7.0.2/24 dev eth0")
        async with asyncio.timeout(10):
            await scene.failed.wait()
        scene.ip("addr add 10.7.0.3/24 dev eth0")
        async with asyncio.timeout(10):
            await guest.happened.wait()

    await following(network, guest, twice)
    network.close()
    scene.undo()
    scene.ip("addr flush dev eth0 scope global")
    assert scene.state() == before


async def test_a_later_daemon_takes_the_network_over(scene: Scene) -> None:
    """It leaves alone what is wired, sees what came while no daemon was there, and unplugs what came late."""
    scene.ip("tuntap add tap0 mode tap")
    veth(scene)
    for words in ("addr add 10.7.0.2/24 dev eth0", "addr add 10.8.0.2/24 dev tap0", "link set tap0 up"):
        scene.ip(words)
    first = await scene.open()
    macs = [nic.mac for nic in first.nics]
    first.close()
    scene.ip("link add mv0 link peer type macvlan mode bridge")
    scene.ip("addr add 10.9.0.2/24 dev mv0")
    settings, guest = Settings(path=str(scene.path)), Guest()
    untold = await PodNetwork.adopt(settings, Ledger(scene.pod), LAUNCHER, scene._note, told=False)
    assert untold is not None
    await untold.tell(guest)
    untold.close()
    assert len(guest.network.interfaces) == 2, "the first daemon died before the guest was told"
    guest = Guest()
    second = await PodNetwork.adopt(settings, Ledger(scene.pod), LAUNCHER, scene._note)
    assert second is not None
    assert [nic.mac for nic in second.nics] == macs

    async def catch_up() -> None:
        async with asyncio.timeout(10):
            await guest.happened.wait()
        guest.happened.clear()
        assert [interface.name for interface in guest.network.interfaces] == ["mv0"]
        assert len(guest.plugged) == 1
        scene.ip("link delete mv0")
        async with asyncio.timeout(10):
            await guest.happened.wait()

    await following(second, guest, catch_up)
    assert guest.plugged == []
    second.close()
    first.hand_over()
    scene.undo()
    assert {link["ifname"] for link in scene.links()} == {"lo", "tap0", "peer", "eth0"}


#: Wires what is there, dying after so many lines of the ledger; 0 ends by itself, with everything made.
MORTAL = """
import asyncio, sys
from pathlib import Path
from kata_shimd.ledger import Ledger
from kata_shimd.net.network import PodNetwork, Settings
from kata_shimd.net.plan import Model
space, pod, model, at = sys.argv[1:]
ledger = Ledger(Path(pod), die_at=int(at) or None)
asyncio.run(PodNetwork.open(Settings(path=space, model=Model(model)), ledger, Path("launcher"), lambda *_, **__: None))
"""


@pytest.mark.parametrize(
    ("model", "at"), [*(("tcfilter", at) for at in (1, 2, 3, 4, 0)), *(("macvtap", at) for at in (1, 2, 3, 0))]
)
def test_a_daemon_killed_at_every_record(scene: Scene, model: str, at: int) -> None:
    veth(scene)
    scene.ip("addr add 10.7.0.2/24 dev eth0")
    before = scene.state()
    done = subprocess.run(
        [sys.executable, "-c", MORTAL, scene.path, scene.pod, model, str(at)], capture_output=True, cwd=REPOSITORY
    )
    assert done.returncode == (-signal.SIGKILL if at else 0), done.stderr.decode()
    asyncio.run(again(scene, model, before))
    scene.undo()
    assert scene.state() == before


async def again(scene: Scene, model: str, before: tuple[Any, ...]) -> None:
    """What a daemon does that finds half a network: it clears it away, and makes a whole one."""
    await PodNetwork.clear(Ledger(scene.pod), LAUNCHER)
    assert scene.state() == before
    network = await scene.open(model=Model(model))
    assert len(network.nics) == 1
    network.hand_over()
    network.close()
