"""The pod's network without a network: what it tells the guest, when, and what a change leads to."""

import asyncio
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import kata_shimd
from kata_shimd.errors import AgentRefused, Code, FailedPrecondition, InvalidArgument, Unimplemented, VmFailed
from kata_shimd.ledger import NAME, Ledger
from kata_shimd.net.network import PodNetwork, Settings
from kata_shimd.net.picture import Link, Picture
from kata_shimd.net.plan import Model
from kata_shimd.net.wiring import Made
from kata_shimd.pod.network import Address, Neighbour, Nic, Route

ETH0 = Link(index=2, name="eth0", kind="veth", mac="02:00:00:00:00:02", mtu=1500, addresses=(Address("10.0.0.2", 24),))
ETH1 = replace(ETH0, index=3, name="eth1", mac="02:00:00:00:00:03", addresses=(Address("10.1.0.2", 24),))
DEFAULT = Route(device="eth0", gateway="10.0.0.1")
GATEWAY = Neighbour(device="eth0", ip="10.0.0.1", mac="02:00:00:00:00:01", state=128)


def test_a_daemon_without_a_network_has_no_library_for_one():
    """It weighs 8 to 9 MB (docs/network.md), and a pod with nothing but the loopback does not pay for it."""
    probe = "import sys; sys.path.insert(0, sys.argv[1]); import kata_shimd.daemon, kata_shimd.net.network; print(*sys.modules)"
    root = str(Path(kata_shimd.__file__).parents[1])
    done = subprocess.run([sys.executable, "-I", "-c", probe, root], capture_output=True, text=True, check=True)
    assert [name for name in done.stdout.split() if name.startswith("pyroute2") or name == "kata_shimd.net.rtnl"] == []


class Space:
    """Says that there is something, and then what."""

    path = Path("/run/netns/x")

    def __init__(self, picture):
        self.picture = picture

    async def run(self, work):
        return [(1, "lo"), (2, "eth0")] if work.__name__ == "if_nameindex" else self.picture

    def close(self):
        pass


class Wires:
    """Wires by making a pipe."""

    def __init__(self):
        self.made, self.undone, self.failure = [], [], None

    async def make(self, wire):
        if self.failure:
            raise self.failure
        self.made.append(wire)
        fd = os.open(os.devnull, os.O_RDONLY)
        return Made(wire, Nic(id=wire.id, mac=wire.mac, fds=(fd,)))

    async def undo(self, wire):
        self.undone.append(wire.link.name)


class Values:
    """The ledger, as far as it is asked: values."""

    def __init__(self):
        self.values = {}

    def set(self, key, value):
        self.values[key] = value


class Changes:
    def __init__(self):
        self.happened = asyncio.Queue()

    async def wait(self):
        await self.happened.get()

    def close(self):
        pass


class Guest:
    """Agent and VM: notes what it is asked, in order."""

    def __init__(self):
        self.asked, self.fail = [], {}
        self.heard = asyncio.Queue()

    def _take(self, what, *how):
        self.asked.append((what, *how))
        self.heard.put_nowait(what)
        if what in self.fail:
            raise self.fail[what]

    async def update_interface(self, interface):
        self._take("interface", interface.name, interface.device_path)

    async def update_routes(self, routes):
        self._take("routes", *(route.gateway for route in routes))

    async def add_neighbours(self, neighbours):
        self._take("neighbours", *(entry.ip for entry in neighbours))

    async def plug_nic(self, nic):
        self._take("plug", nic.id, all(os.fstat(fd) for fd in nic.fds))
        return "10.0/00"

    async def unplug_nic(self, nic_id):
        self._take("unplug", nic_id)


class Stage:
    def __init__(self, *links, routes=(), neighbours=()):
        self.space = Space(Picture(links, routes, neighbours))
        self.wires, self.changes, self.guest, self.notes = Wires(), Changes(), Guest(), []
        self.ended = asyncio.Event()
        settings = Settings(path="/run/netns/x")
        self.ledger = Values()
        self.network = PodNetwork(self.space, self.changes, self.wires, settings, self.ledger, self._note)

    def _note(self, event, **fields):
        self.notes.append((event, fields))
        self.guest.heard.put_nowait(event)

    async def begin(self):
        await self.network._begin()
        await self.network.tell(self.guest)
        self.network.hand_over()
        self.guest = Guest()

    async def change(self, until, *links, routes=()):
        """Something changes; wait for the guest to be asked, or the journal told, ``until``."""
        self.space.picture = Picture(links, routes)
        self.changes.happened.put_nowait(None)
        async with asyncio.timeout(5):
            while await self.guest.heard.get() != until:
                pass

    async def following(self, work):
        async with asyncio.TaskGroup() as group:
            group.create_task(self.network.follow(self.guest, self.guest, self.ended.wait))
            await work()
            self.ended.set()


class Alone(Space):
    """Where there is nothing but the loopback."""

    async def run(self, work):
        assert work.__name__ == "if_nameindex", "the library was asked"
        return [(1, "lo")]


async def test_a_loopback_alone_is_looked_at_without_the_library():
    stage = Stage()
    stage.network._space = Alone(None)
    await stage.begin()
    assert stage.network.looks == 1 and stage.network.nics == ()


async def test_the_guest_is_told_in_katas_order():
    stage = Stage(ETH0, ETH1, routes=(DEFAULT,), neighbours=(GATEWAY,))
    await stage.network._begin()
    await stage.network.tell(stage.guest)
    stage.network.hand_over()
    assert [nic.id for nic in stage.network.nics] == ["net2", "net3"]
    assert stage.guest.asked == [
        ("interface", "eth0", ""),
        ("interface", "eth1", ""),
        ("routes", "10.0.0.1"),
        ("neighbours", "10.0.0.1"),
    ]


async def test_an_agent_without_neighbours_needs_none():
    stage = Stage(ETH0, neighbours=(GATEWAY,))
    stage.guest.fail["neighbours"] = AgentRefused("AddARPNeighbors", "", Code.UNIMPLEMENTED, "no such method")
    await stage.begin()
    stage = Stage(ETH0, neighbours=(GATEWAY,))
    stage.guest.fail["neighbours"] = AgentRefused("AddARPNeighbors", "", Code.INTERNAL, "netlink")
    with pytest.raises(AgentRefused, match="netlink"):
        await stage.begin()
    stage.network.hand_over()


async def test_a_late_interface_is_plugged_in_and_told_with_its_path():
    stage = Stage(ETH0)
    await stage.begin()
    await stage.following(lambda: stage.change("routes", ETH0, ETH1, routes=(DEFAULT,)))
    assert stage.guest.asked == [("plug", "net3", True), ("interface", "eth1", "10.0/00"), ("routes", "10.0.0.1")]
    assert stage.ledger.values == {"nic/2": "", "nic/3": "10.0/00"}


async def test_a_vm_that_is_born_without_devices_is_given_them_and_the_guest_their_paths():
    stage = Stage(ETH0, ETH1, routes=(DEFAULT,))
    await stage.network._begin()
    await stage.network.plug_in(stage.guest)
    await stage.network.tell(stage.guest)
    stage.network.hand_over()
    assert stage.guest.asked[:3] == [("plug", "net2", True), ("plug", "net3", True), ("interface", "eth0", "10.0/00")]
    assert stage.ledger.values == {"nic/2": "10.0/00", "nic/3": "10.0/00"}


async def test_after_that_vm_came_to_nothing_the_next_is_born_with_them():
    stage = Stage(ETH0, ETH1)
    await stage.network._begin()
    stage.guest.fail["plug"] = VmFailed("qmp device_add", "net2", "no")
    with pytest.raises(VmFailed):
        await stage.network.plug_in(stage.guest)
    stage.guest.fail.clear()
    await stage.network.plug_in(stage.guest)
    stage.network.unplugged()
    await stage.network.tell(stage.guest)
    assert [nic.id for nic in stage.network.nics] == ["net2", "net3"]
    stage.network.hand_over()
    assert stage.guest.asked[-2:] == [("interface", "eth0", ""), ("interface", "eth1", "")]
    assert stage.ledger.values == {"nic/2": "", "nic/3": ""}


async def test_what_has_not_changed_is_not_told_again():
    stage = Stage(ETH0, routes=(DEFAULT,), neighbours=(GATEWAY,))
    await stage.begin()
    await stage.following(lambda: stage.change("routes", ETH0))
    assert stage.guest.asked == [("routes",)]


async def test_an_interface_that_is_taken_away_is_unplugged_if_it_came_late():
    stage = Stage(ETH0)
    await stage.begin()

    async def come_and_go():
        await stage.change("interface", ETH0, ETH1)
        await stage.change("unplug", ETH0)
        await stage.change("nic-lost")

    await stage.following(come_and_go)
    assert [what for what, *_ in stage.guest.asked] == ["plug", "interface", "unplug"]
    assert stage.wires.undone == ["eth1", "eth0"]
    assert stage.ledger.values == {"nic/2": None, "nic/3": None}


async def test_the_pod_goes_on_whatever_fails_and_what_failed_is_tried_again():
    stage = Stage(ETH0)
    await stage.begin()

    async def trouble():
        stage.guest.fail["plug"] = VmFailed("plug network device", "net3", "no PCIe root port is free")
        await stage.change("network-failed", ETH0, ETH1)
        stage.guest.fail.clear()
        stage.wires.failure = FailedPrecondition("redirect frames", "eth1", "taken")
        await stage.change("network-failed", ETH0, ETH1)
        stage.wires.failure = None
        await stage.change("interface", ETH0, ETH1)

    await stage.following(trouble)
    assert [fields["error"].partition(":")[0] for event, fields in stage.notes if event == "network-failed"] == [
        "plug network device",
        "redirect frames",
    ]
    assert stage.guest.asked[-1][:2] == ("interface", "eth1")
    assert stage.wires.undone == ["eth1", "eth1"]


async def test_a_late_interface_that_no_vm_can_be_given_is_told_once():
    stage = Stage(ETH0)
    await stage.begin()
    bridge = replace(ETH1, kind="bridge")

    async def twice():
        await stage.change("nic-refused", ETH0, bridge)
        await stage.change("routes", ETH0, bridge, routes=(DEFAULT,))

    await stage.following(twice)
    assert [event for event, _ in stage.notes] == ["nic-refused"]


async def test_at_the_start_it_is_an_error():
    stage = Stage(ETH0, replace(ETH1, kind="bridge"))
    with pytest.raises(Unimplemented, match="eth1: it is of kind bridge"):
        await stage.network._begin()
    assert stage.wires.made == []


def ledger(tmp_path):
    (tmp_path / NAME).touch(mode=0o600)
    return Ledger(tmp_path)


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        (Settings(path=None), Unimplemented, "no network namespace: it is the host's"),
        (Settings(path="/proc/self/ns/net"), Unimplemented, "join network: /proc/self/ns/net: it is the host's"),
        (Settings(path="/no/such"), InvalidArgument, "open network namespace: /no/such: No such file"),
        (Settings(path="/etc/hostname"), InvalidArgument, "no network namespace is bound there"),
        (Settings(path="/proc/self/ns/mnt"), InvalidArgument, "no network namespace is bound there"),
        (Settings(path="", new_namespace=False), InvalidArgument, "disable_new_netns: it goes with the model none"),
    ],
)
async def test_what_cannot_be_is_refused_with_nothing_made(tmp_path, settings, error, says):
    with pytest.raises(error, match=says):
        await PodNetwork.open(settings, ledger(tmp_path), Path("launcher"), print)
    assert (tmp_path / NAME).read_bytes() == b""


async def test_the_daemons_own_namespace_is_no_network(tmp_path):
    settings = Settings(path="", new_namespace=False, model=Model.NONE)
    assert await PodNetwork.open(settings, ledger(tmp_path), Path("launcher"), print) is None
