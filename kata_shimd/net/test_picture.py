"""What is read from netlink's messages, here written by hand as the library gives them."""

import pytest

from kata_shimd.net.picture import NUD_PERMANENT, NUD_REACHABLE, Picture, read
from kata_shimd.pod.network import Address, Neighbour, Route

V4, V6 = 2, 10
NUD_STALE = 4


def message(attributes=(), **fields):
    return {"attrs": [tuple(pair) for pair in attributes.items()] if attributes else [], **fields}


def link(index, name, kind="", *, data=None, flags=0x1003, mac="02:00:00:00:00:02", mtu=1500):
    attributes = {"IFLA_IFNAME": name, "IFLA_MTU": mtu, "IFLA_ADDRESS": mac}
    if kind:
        inner = {"IFLA_INFO_KIND": kind, **({"IFLA_INFO_DATA": message(data)} if data else {})}
        attributes["IFLA_LINKINFO"] = message(inner)
    return message(attributes, index=index, flags=flags)


def address(index, ip, prefix, **attributes):
    return message({"IFA_ADDRESS": ip, **attributes}, index=index, prefixlen=prefix)


def route(oif=2, *, dst=None, length=0, family=V4, proto=4, table=254, kind=1, scope=0, flags=0, **attributes):
    found = {"RTA_OIF": oif, **({"RTA_DST": dst} if dst else {}), **attributes}
    fixed = {"table": table, "type": kind, "proto": proto, "scope": scope, "flags": flags}
    return message(found, family=family, dst_len=length, **fixed)


def neighbour(ip, mac, state, *, ifindex=2, flags=0):
    return message({"NDA_DST": ip, **({"NDA_LLADDR": mac} if mac else {})}, ifindex=ifindex, state=state, flags=flags)


LO = link(1, "lo", flags=0x9, mac="00:00:00:00:00:00", mtu=65536)
ETH = link(2, "eth0", "veth", mtu=9000)


def only_link(*links, addresses=()):
    return read(links, addresses, (), ()).links[0]


def test_a_link_and_its_addresses():
    addresses = [address(1, "127.0.0.1", 8), address(2, "10.0.0.2", 24), address(2, "fd00::2", 64)]
    lo, eth = read([LO, ETH], addresses, (), ()).links
    assert lo.loopback and lo.addresses == ()
    assert (eth.index, eth.name, eth.kind, eth.mac, eth.mtu) == (2, "eth0", "veth", "02:00:00:00:00:02", 9000)
    assert eth.addresses == (Address("10.0.0.2", 24), Address("fd00::2", 64))
    assert not (eth.loopback or eth.no_arp or eth.is_tap)


@pytest.mark.parametrize(("ip", "told"), [("fe80::1", False), ("169.254.1.5", True), ("::1", False), ("fd00::1", True)])
def test_addresses_that_the_guest_makes_itself_are_left_out(ip, told):
    assert bool(only_link(ETH, addresses=[address(2, ip, 64)]).addresses) is told


def test_with_a_peer_the_local_address_counts():
    found = only_link(ETH, addresses=[address(2, "10.0.0.1", 32, IFA_LOCAL="10.0.0.2")])
    assert found.addresses == (Address("10.0.0.2", 32),)


@pytest.mark.parametrize(("kind", "queues", "tap"), [(2, 1, True), (2, 0, True), (1, 0, False)])
def test_taps_and_tuns_are_told_apart(kind, queues, tap):
    found = only_link(link(3, "t", "tun", data={"IFLA_TUN_TYPE": kind, "IFLA_TUN_MULTI_QUEUE": queues}))
    assert (found.is_tap, found.multi_queue) == (tap, bool(queues))


def test_no_arp():
    assert only_link(link(2, "eth0", "ipvlan", flags=0x1083)).no_arp


def routes(*messages):
    return read([LO, ETH], (), messages, ()).routes


def test_routes_in_all_their_parts():
    found = routes(
        route(RTA_GATEWAY="10.0.0.1"),
        route(dst="10.9.0.0", length=16, RTA_PREFSRC="10.0.0.2", scope=253, RTA_METRICS=message({"RTAX_MTU": 1400})),
        route(family=V6, RTA_GATEWAY="fd00::1", flags=4 | 16),
    )
    assert found == (
        Route(device="eth0", gateway="10.0.0.1"),
        Route(device="eth0", destination="10.9.0.0/16", source="10.0.0.2", scope=253, mtu=1400),
        Route(device="eth0", gateway="fd00::1", flags=4, is_v6=True),
    )


@pytest.mark.parametrize(
    "other",
    [
        route(dst="10.0.0.0", length=24, proto=2),
        route(family=V6, RTA_GATEWAY="fe80::1", proto=9),
        route(dst="10.0.0.2", length=32, table=255),
        route(dst="10.0.0.0", length=24, RTA_TABLE=1000),
        route(dst="10.0.0.0", length=24, kind=6),
        route(1, dst="10.1.0.0", length=16),
        route(None, dst="10.1.0.0", length=16),
        route(7, dst="10.1.0.0", length=16),
    ],
    ids=["kernel's", "router's", "local table", "other table", "blackhole", "loopback", "several hops", "unknown link"],
)
def test_routes_that_are_not_told(other):
    assert routes(other) == ()


def test_neighbours_that_are_told():
    default = route(RTA_GATEWAY="10.0.0.1")
    other = route(dst="10.1.0.0", length=16, RTA_GATEWAY="10.0.0.7")
    found = read(
        [LO, ETH],
        (),
        [default, other],
        [
            neighbour("10.0.0.9", "02:00:00:00:00:09", NUD_PERMANENT, flags=2),
            neighbour("10.0.0.1", "02:00:00:00:00:01", NUD_REACHABLE),
            neighbour("10.0.0.7", "02:00:00:00:00:07", NUD_REACHABLE),
            neighbour("10.0.0.8", "02:00:00:00:00:08", NUD_STALE),
            neighbour("10.0.0.6", "", NUD_PERMANENT),
            neighbour("10.0.0.5", "02:00:00:00:00:05", NUD_PERMANENT, ifindex=1),
        ],
    )
    assert found.neighbours == (
        Neighbour(device="eth0", ip="10.0.0.9", mac="02:00:00:00:00:09", state=NUD_PERMANENT, flags=2),
        Neighbour(device="eth0", ip="10.0.0.1", mac="02:00:00:00:00:01", state=NUD_REACHABLE),
    )


def test_nothing():
    assert read((), (), (), ()) == Picture()
