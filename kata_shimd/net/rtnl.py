"""Netlink's requests, each a function that a thread inside the namespace calls. The only module that knows the library.

Importing it takes 50 ms and 9 MB (measured), so it is imported only by a pod in whose namespace there is something.
"""

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Final

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from kata_shimd.errors import HostFailed
from kata_shimd.net import picture

_ETH_P_ALL: Final = 3
#: The parent that means "what comes in", and the handle that the kernel gives its queueing discipline.
_INGRESS: Final = 0xFFFF_FFF1
_INGRESS_HANDLE: Final = 0xFFFF_0000
#: linux/if_link.h, IN6_ADDR_GEN_MODE_NONE
_NO_ADDRESS: Final = 1

#: What the kernel says when it does not know a kind of thing.
_MISSING: Final = (errno.ENOENT, errno.EOPNOTSUPP)
_MIRROR_MODULES: Final = "the kernel needs sch_ingress, cls_u32 and act_mirred; or set another internetworking_model"
_NO_HINTS: Final[Mapping[int, str]] = MappingProxyType({})


def scan() -> picture.Picture:
    """What there is in this thread's namespace. :raises HostFailed: netlink failed"""
    with _netlink("read network", "") as ip:
        return picture.read(ip.get_links(), ip.get_addr(), ip.get_routes(), ip.get_neighbours())


def index_of(name: str) -> int:
    """:raises HostFailed: there is no such link"""
    with _netlink("find link", name) as ip:
        found = ip.link_lookup(ifname=name)
    if not found:
        raise HostFailed("find link", name, "it has gone")
    return int(found[0])


def has_ingress(index: int) -> bool:
    """Whether somebody handles what comes in at a link already."""
    with _netlink("list queueing disciplines", str(index)) as ip:
        return any(found["parent"] == _INGRESS for found in ip.get_qdiscs(index=index))


def set_up_tap(index: int, name: str, mtu: int) -> None:
    """Give a new tap its MTU and set it up."""
    with _netlink("set up tap", name) as ip:
        ip.link("set", index=index, mtu=mtu)
        _set_up(ip, index)


def mirror(index: int, name: str, to: int) -> None:
    """Every frame that comes in at ``index`` goes out at ``to``."""
    action = {"kind": "mirred", "direction": "egress", "action": "redirect", "ifindex": to}
    with _netlink("redirect frames", name, dict.fromkeys(_MISSING, _MIRROR_MODULES)) as ip:
        ip.tc("add", "ingress", index)
        ip.tc(
            "add-filter", "u32", index, parent=_INGRESS_HANDLE, protocol=_ETH_P_ALL, prio=1, target=0,
            keys=["0x0/0x0+0"], action=action,
        )  # fmt: skip


def add_macvtap(name: str, lower: int) -> int:
    """Make a macvtap that takes all frames of ``lower``, under its MAC; the index of the new link."""
    missing = dict.fromkeys(_MISSING, "load the module macvtap")
    with _netlink("make macvtap", name, {**missing, errno.EBUSY: "is another macvlan on the link?"}) as ip:
        ip.link("add", ifname=name, kind="macvtap", link=lower, macvtap_mode="passthru")
        index = int(ip.link_lookup(ifname=name)[0])
        _set_up(ip, index)
        return index


def _set_up(ip: IPRoute, index: int) -> None:
    """The host shall say nothing of its own there, so the link gets no IPv6 address."""
    no_address = {"attrs": [("AF_INET6", {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", _NO_ADDRESS)]})]}
    ip.link("set", index=index, IFLA_AF_SPEC=no_address)
    ip.link("set", index=index, state="up")


@contextmanager
def _netlink(step: str, obj: str, hints: Mapping[int, str] = _NO_HINTS) -> Iterator[IPRoute]:
    try:
        with IPRoute() as ip:
            yield ip
    except NetlinkError as error:
        raise HostFailed(step, obj, os.strerror(error.code), hint=hints.get(error.code, "")) from error
    except OSError as error:
        raise HostFailed(step, obj, error.strerror or str(error)) from error
