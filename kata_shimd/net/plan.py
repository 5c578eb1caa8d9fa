"""Which links of a namespace are given to the VM, and how: decided from a picture alone.

What a kind of link allows is a table. A link without an address is nobody's yet: it is looked at again when netlink says that
it has changed.
"""

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from kata_shimd.errors import HostFailed, ShimError, Unimplemented
from kata_shimd.net.picture import Link, Picture
from kata_shimd.pod.network import GuestNetwork, Interface


class Model(StrEnum):
    """Kata's `internetworking_model`."""

    TCFILTER = "tcfilter"
    MACVTAP = "macvtap"
    NONE = "none"


class Way(StrEnum):
    """How a link becomes a device of the VM."""

    #: A tap beside it, and every frame that enters the one leaves through the other.
    MIRROR = "mirror"
    #: A macvtap on top of it, which takes all of its frames.
    MACVTAP = "macvtap"
    #: It is a tap already: its other end is QEMU's.
    TAP = "tap"
    #: It is a macvtap already.
    OPEN_MACVTAP = "open-macvtap"


#: What the model asks for, by kind of link. ipvlan has its parent's MAC and macvlan cannot bear another on top, so both are
#: mirrored whatever the model (`kata.md` §5.2).
_WAYS: Final[Mapping[str, Mapping[Model, Way]]] = {
    "veth": {Model.TCFILTER: Way.MIRROR, Model.MACVTAP: Way.MACVTAP},
    "vlan": {Model.TCFILTER: Way.MIRROR, Model.MACVTAP: Way.MACVTAP},
    "macvlan": {Model.TCFILTER: Way.MIRROR, Model.MACVTAP: Way.MIRROR},
    "ipvlan": {Model.TCFILTER: Way.MIRROR, Model.MACVTAP: Way.MIRROR},
    "macvtap": {Model.TCFILTER: Way.OPEN_MACVTAP, Model.MACVTAP: Way.OPEN_MACVTAP},
    "tun": {Model.TCFILTER: Way.TAP, Model.MACVTAP: Way.TAP},
}


@dataclass(frozen=True, slots=True)
class Wire:
    """A link and its device of the VM. ``name`` is that of the link we make, empty where none is made."""

    link: Link
    way: Way
    mac: str
    name: str = ""

    @property
    def id(self) -> str:
        return f"net{self.link.index}"


@dataclass(frozen=True, slots=True)
class Plan:
    """Wires to make, and links that cannot be given to the VM, each with the reason."""

    wires: tuple[Wire, ...] = ()
    refused: tuple[ShimError, ...] = ()


def plan(picture: Picture, model: Model, wired: Collection[int] = ()) -> Plan:
    """What to do about the links that have an address and are not in ``wired`` (indexes)."""
    wires: list[Wire] = []
    refused: list[ShimError] = []
    names = _free_names(picture)
    for link in picture.links:
        if model is Model.NONE or link.loopback or not link.addresses or link.index in wired:
            continue
        if (way := _way(link, model)) is None:
            refused.append(_unsupported(link))
        else:
            wires.append(_wire(link, way, names))
    return Plan(tuple(wires), tuple(refused))


def _way(link: Link, model: Model) -> Way | None:
    if link.kind == "tun" and not link.is_tap:
        return None
    return _WAYS.get(link.kind, {}).get(model)


def _wire(link: Link, way: Way, names: Iterator[str]) -> Wire:
    if way is Way.TAP:
        # The link itself is the far end of the cable, so the guest's end has an address of its own: always the same, for whoever
        # takes the pod over.
        return Wire(link, way, f"02:{hashlib.sha256(link.mac.encode()).digest()[:5].hex(':')}")
    return Wire(link, way, link.mac, next(names) if way in (Way.MIRROR, Way.MACVTAP) else "")


def _free_names(picture: Picture) -> Iterator[str]:
    """Kata's names, but for those that are taken: `undo` may know a link by its name alone."""
    taken = {link.name for link in picture.links}
    return (name for number in range(len(taken) + len(picture.links) + 1) if (name := f"tap{number}_kata") not in taken)


def _unsupported(link: Link) -> Unimplemented:
    kind = f"of kind {link.kind}" if link.kind else "a device of the host"
    if link.kind == "tun":
        kind = "a tun, which carries no Ethernet frames"
    return Unimplemented(
        "connect network interface", link.name, f"it is {kind}, which a virtual machine cannot be given",
        hint=f"use a CNI plugin that makes one of: {', '.join(_WAYS)}",
    )  # fmt: skip


def require_addresses(picture: Picture, where: str) -> None:
    """:raises HostFailed: there are interfaces, and none of them has an address"""
    links = [link.name for link in picture.links if not link.loopback and link.kind in _WAYS]
    if links and not any(link.addresses for link in picture.links):
        raise HostFailed(
            "read pod network", where, f"no interface has an address ({', '.join(links)})",
            hint="see what the CNI plugins answered; is the ipam section missing?",
        )  # fmt: skip


def guest_network(picture: Picture, wires: Iterable[Wire]) -> GuestNetwork:
    """What the guest is told of ``wires``, from a picture in which they are."""
    macs = {wire.link.index: wire.mac for wire in wires}
    links = [link for link in picture.links if link.index in macs and link.addresses]
    names = {link.name for link in links}
    return GuestNetwork(
        tuple(_interface(link, macs[link.index]) for link in links),
        tuple(route for route in picture.routes if route.device in names),
        tuple(entry for entry in picture.neighbours if entry.device in names),
    )


def _interface(link: Link, mac: str) -> Interface:
    return Interface(name=link.name, mac=mac, mtu=link.mtu, addresses=link.addresses, no_arp=link.no_arp)
