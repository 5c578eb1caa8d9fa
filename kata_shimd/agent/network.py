"""The pod's network in the agent's messages (`kata.md` §5.4)."""

from typing import Final

from kata_shimd.api import agent as pb
from kata_shimd.api import agent_types as types
from kata_shimd.pod.network import Address, Interface, Neighbour, Route

#: linux/if.h; the only flag that is told.
_IFF_NOARP: Final = 0x80


def interface(item: Interface) -> pb.UpdateInterfaceRequest:
    return pb.UpdateInterfaceRequest(
        interface=types.Interface(
            device=item.name,
            name=item.name,
            ip_addresses=[_address(address) for address in item.addresses],
            mtu=item.mtu,
            hw_addr=item.mac,
            device_path=item.device_path,
            raw_flags=_IFF_NOARP if item.no_arp else 0,
        )
    )


def _address(item: Address) -> types.IpAddress:
    return types.IpAddress(family=_family(is_v6=item.is_v6), address=item.ip, mask=str(item.prefix))


def _family(*, is_v6: bool) -> types.IpFamily:
    return types.IpFamily.v6 if is_v6 else types.IpFamily.v4


def routes(items: tuple[Route, ...]) -> pb.UpdateRoutesRequest:
    return pb.UpdateRoutesRequest(routes=pb.Routes(routes=[_route(item) for item in items]))


def _route(item: Route) -> types.Route:
    return types.Route(
        dest=item.destination,
        gateway=item.gateway,
        device=item.device,
        source=item.source,
        scope=item.scope,
        family=_family(is_v6=item.is_v6),
        flags=item.flags,
        mtu=item.mtu,
    )


def neighbours(items: tuple[Neighbour, ...]) -> pb.AddArpNeighborsRequest:
    return pb.AddArpNeighborsRequest(neighbors=pb.ArpNeighbors(arp_neighbors=[_neighbour(item) for item in items]))


def _neighbour(item: Neighbour) -> types.ArpNeighbor:
    return types.ArpNeighbor(
        to_ip_address=types.IpAddress(family=_family(is_v6=":" in item.ip), address=item.ip),
        device=item.device,
        lladdr=item.mac,
        state=item.state,
        flags=item.flags,
    )
