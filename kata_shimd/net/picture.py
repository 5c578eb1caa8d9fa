"""What is found in a network namespace: netlink's messages read into values, without a socket.

Messages are mappings with a list of attributes, as the netlink library gives them. What the guest is to be told follows from a
picture alone, so that two pictures can be compared.
"""

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from kata_shimd.pod.network import Address, Neighbour, Route

#: linux/rtnetlink.h, linux/if_link.h, linux/neighbour.h
RT_TABLE_MAIN: Final = 254
RTN_UNICAST: Final = 1
RTPROT_KERNEL: Final = 2
RTPROT_RA: Final = 9
RTNH_F_ONLINK: Final = 4
IFF_NOARP: Final = 0x80
IFF_LOOPBACK: Final = 8
NUD_REACHABLE: Final = 0x02
NUD_PERMANENT: Final = 0x80
TUN_TAP: Final = 2
_AF_INET6: Final = 10

#: Routes that the guest's kernel makes too: from its addresses, and from what routers say, which no longer reaches the host's.
_MADE_BY_ITSELF: Final = frozenset({RTPROT_KERNEL, RTPROT_RA})

Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A link, with the addresses that are worth telling. ``kind`` is netlink's (``veth``, ``macvlan`` …), empty for a device."""

    index: int
    name: str
    kind: str
    mac: str
    mtu: int
    no_arp: bool = False
    loopback: bool = False
    #: Of kind ``tun``: whether it carries Ethernet frames, and whether it was made for several queues.
    is_tap: bool = False
    multi_queue: bool = False
    addresses: tuple[Address, ...] = ()


@dataclass(frozen=True, slots=True)
class Picture:
    """Links by index, routes and neighbours of the whole namespace."""

    links: tuple[Link, ...] = ()
    routes: tuple[Route, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()


def attribute(message: Message, *names: str) -> Any:
    """An attribute, or one nested in it; None if it is not there."""
    found: Any = message
    for name in names:
        pairs = found.get("attrs", ()) if isinstance(found, Mapping) else ()
        found = next((pair[1] for pair in pairs if pair[0] == name), None)
    return found


def read(
    links: Iterable[Message], addresses: Iterable[Message], routes: Iterable[Message], neighbours: Iterable[Message]
) -> Picture:
    """Put what four dumps said together."""
    by_link: dict[int, list[Address]] = {}
    for message in addresses:
        if (address := _address(message)) is not None:
            by_link.setdefault(message["index"], []).append(address)
    found = tuple(_link(message, tuple(by_link.get(message["index"], ()))) for message in links)
    names = {link.index: link.name for link in found if not link.loopback}
    told = tuple(route for message in routes if (route := _route(message, names)) is not None)
    gateways = {route.gateway for route in told if route.gateway and not route.destination}
    near = tuple(entry for message in neighbours if (entry := _neighbour(message, names, gateways)) is not None)
    return Picture(found, told, near)


def _link(message: Message, addresses: tuple[Address, ...]) -> Link:
    kind = attribute(message, "IFLA_LINKINFO", "IFLA_INFO_KIND") or ""
    data = ("IFLA_LINKINFO", "IFLA_INFO_DATA")
    return Link(
        index=message["index"],
        name=str(attribute(message, "IFLA_IFNAME")),
        kind=kind,
        mac=str(attribute(message, "IFLA_ADDRESS") or ""),
        mtu=int(attribute(message, "IFLA_MTU") or 0),
        no_arp=bool(message["flags"] & IFF_NOARP),
        loopback=bool(message["flags"] & IFF_LOOPBACK),
        is_tap=kind == "tun" and attribute(message, *data, "IFLA_TUN_TYPE") == TUN_TAP,
        multi_queue=bool(attribute(message, *data, "IFLA_TUN_MULTI_QUEUE")),
        addresses=addresses,
    )


def _address(message: Message) -> Address | None:
    """IPv6 link-local addresses are left out: the guest's kernel makes the same ones from the same MAC."""
    ip = attribute(message, "IFA_LOCAL") or attribute(message, "IFA_ADDRESS")
    if not ip or (parsed := ipaddress.ip_address(ip)).is_loopback:
        return None
    if parsed.version == 6 and parsed.is_link_local:
        return None
    return Address(str(ip), int(message["prefixlen"]))


def _route(message: Message, names: Mapping[int, str]) -> Route | None:
    """A route that somebody wanted, out of one link (of several next hops netlink names no one link)."""
    table = attribute(message, "RTA_TABLE") or message["table"]
    device = names.get(attribute(message, "RTA_OIF"))
    ours = table == RT_TABLE_MAIN and message["type"] == RTN_UNICAST and message["proto"] not in _MADE_BY_ITSELF
    if not ours or device is None:
        return None
    destination = attribute(message, "RTA_DST")
    gateway = attribute(message, "RTA_GATEWAY") or attribute(message, "RTA_VIA")
    return Route(
        device=device,
        destination=f"{destination}/{message['dst_len']}" if destination and message["dst_len"] else "",
        gateway=gateway if isinstance(gateway, str) else "",
        source=str(attribute(message, "RTA_PREFSRC") or ""),
        scope=int(message["scope"]),
        flags=int(message["flags"]) & RTNH_F_ONLINK,
        mtu=int(attribute(message, "RTA_METRICS", "RTAX_MTU") or 0),
        is_v6=message["family"] == _AF_INET6,
    )


def _neighbour(message: Message, names: Mapping[int, str], gateways: set[str]) -> Neighbour | None:
    """Fixed entries, and that of a default gateway as long as it is known to be true (`kata.md` §5.4)."""
    ip, mac = attribute(message, "NDA_DST"), attribute(message, "NDA_LLADDR")
    device, state = names.get(message["ifindex"]), int(message["state"])
    wanted = state & NUD_PERMANENT or (state & NUD_REACHABLE and ip in gateways)
    if not (ip and mac and device and wanted):
        return None
    return Neighbour(device=device, ip=str(ip), mac=str(mac), state=state, flags=int(message["flags"]))
