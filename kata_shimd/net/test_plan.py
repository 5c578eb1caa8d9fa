"""Which links are wired, how, and what the guest is told of them."""

import re
from dataclasses import replace

import pytest

from kata_shimd.errors import HostFailed, Unimplemented
from kata_shimd.net.picture import Link, Picture
from kata_shimd.net.plan import Model, Way, guest_network, plan, require_addresses
from kata_shimd.pod.network import Address, Interface, Neighbour, Route

LO = Link(index=1, name="lo", kind="", mac="00:00:00:00:00:00", mtu=65536, loopback=True)
ETH0 = Link(index=2, name="eth0", kind="veth", mac="02:00:00:00:00:02", mtu=9000, addresses=(Address("10.0.0.2", 24),))
ETH1 = replace(ETH0, index=3, name="eth1", mac="02:00:00:00:00:03", addresses=(Address("fd00::2", 64),))


@pytest.mark.parametrize(
    ("kind", "model", "way", "made"),
    [
        ("veth", Model.TCFILTER, Way.MIRROR, True),
        ("veth", Model.MACVTAP, Way.MACVTAP, True),
        ("vlan", Model.TCFILTER, Way.MIRROR, True),
        ("macvlan", Model.TCFILTER, Way.MIRROR, True),
        ("macvlan", Model.MACVTAP, Way.MIRROR, True),
        ("ipvlan", Model.TCFILTER, Way.MIRROR, True),
        ("ipvlan", Model.MACVTAP, Way.MIRROR, True),
        ("macvtap", Model.TCFILTER, Way.OPEN_MACVTAP, False),
        ("macvtap", Model.MACVTAP, Way.OPEN_MACVTAP, False),
    ],
)
def test_ways(kind, model, way, made):
    (wire,) = plan(Picture((LO, replace(ETH0, kind=kind))), model).wires
    assert (wire.way, wire.mac, bool(wire.name)) == (way, ETH0.mac, made)


@pytest.mark.parametrize("model", [Model.TCFILTER, Model.MACVTAP])
def test_a_tap_is_the_far_end_of_the_cable_so_the_guest_has_another_address(model):
    (wire,) = plan(Picture((replace(ETH0, kind="tun", is_tap=True),)), model).wires
    assert (wire.way, wire.name) == (Way.TAP, "")
    assert re.fullmatch(r"02(:[0-9a-f]{2}){5}", wire.mac) and wire.mac != ETH0.mac


@pytest.mark.parametrize(
    ("kind", "says"), [("", "a device of the host"), ("bridge", "of kind bridge"), ("tun", "a tun, which carries no")]
)
def test_what_no_vm_can_be_given_is_refused_with_what_it_is(kind, says):
    todo = plan(Picture((LO, ETH1, replace(ETH0, kind=kind))), Model.TCFILTER)
    assert [wire.link.name for wire in todo.wires] == ["eth1"]
    (error,) = todo.refused
    assert isinstance(error, Unimplemented)
    assert str(error).startswith("connect network interface: eth0: ") and says in str(error) and "veth" in error.hint


def test_links_without_an_address_are_left_alone_whatever_they_are():
    bare = replace(ETH0, kind="sit", addresses=())
    assert plan(Picture((LO, bare, replace(ETH0, addresses=()))), Model.TCFILTER) == plan(Picture(), Model.TCFILTER)


def test_none_wires_nothing():
    assert plan(Picture((LO, ETH0, replace(ETH1, kind="bridge"))), Model.NONE).wires == ()


def test_names_that_are_taken_are_not_taken_again():
    taken = replace(ETH0, index=9, name="tap0_kata", addresses=())
    todo = plan(Picture((LO, ETH0, ETH1, taken)), Model.TCFILTER)
    assert [wire.name for wire in todo.wires] == ["tap1_kata", "tap2_kata"]
    assert [wire.id for wire in todo.wires] == ["net2", "net3"]


def test_what_is_wired_stays_as_it_is():
    assert [wire.link.name for wire in plan(Picture((ETH0, ETH1)), Model.TCFILTER, {2}).wires] == ["eth1"]


def test_an_interface_that_nobody_gave_an_address():
    with pytest.raises(
        HostFailed, match=r"read pod network: /run/netns/x: no interface has an address \(eth0\); .*ipam"
    ):
        require_addresses(Picture((LO, replace(ETH0, addresses=()))), "/run/netns/x")
    require_addresses(Picture((LO,)), "only a loopback is a network too")
    require_addresses(Picture((LO, replace(ETH0, addresses=()), ETH1)), "one of two")


def test_the_guest_is_told_of_what_it_has_and_of_nothing_else():
    picture = Picture(
        (LO, ETH0, ETH1),
        (Route(device="eth0", gateway="10.0.0.1"), Route(device="eth1", gateway="fd00::1", is_v6=True)),
        (Neighbour(device="eth1", ip="fd00::1", mac="02:00:00:00:00:01", state=128),),
    )
    wires = plan(picture, Model.TCFILTER).wires
    told = guest_network(picture, wires[:1])
    assert told.interfaces == (Interface(name="eth0", mac=ETH0.mac, mtu=9000, addresses=(Address("10.0.0.2", 24),)),)
    assert [route.device for route in told.routes] == ["eth0"]
    assert told.neighbours == ()
    assert guest_network(picture, wires).neighbours == picture.neighbours
