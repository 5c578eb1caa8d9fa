"""The pod's network as the domain says it: what the guest is told, what the VM is given, and who carries it there.

Free of any wire format and of netlink. Addresses are text without a prefix, families follow from them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Address:
    """An IP address and the length of its prefix in bits."""

    ip: str
    prefix: int

    @property
    def is_v6(self) -> bool:
        return ":" in self.ip


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """An interface of the guest, which is found there by its MAC. ``device_path`` is its PCI path when it was plugged in late."""

    name: str
    mac: str
    mtu: int
    addresses: tuple[Address, ...] = ()
    no_arp: bool = False
    device_path: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A route of the guest's main table; without ``destination`` it is the default one of its family."""

    device: str
    destination: str = ""
    gateway: str = ""
    source: str = ""
    scope: int = 0
    flags: int = 0
    mtu: int = 0
    is_v6: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbour:
    """An entry of the guest's neighbour table; ``state`` and ``flags`` are the kernel's NUD_* and NTF_*."""

    device: str
    ip: str
    mac: str
    state: int
    flags: int = 0


@dataclass(frozen=True, slots=True)
class GuestNetwork:
    """Everything the guest is told about its network."""

    interfaces: tuple[Interface, ...] = ()
    routes: tuple[Route, ...] = ()
    neighbours: tuple[Neighbour, ...] = field(default=())


@dataclass(frozen=True, slots=True, kw_only=True)
class Nic:
    """A network device for the VM, on tap queues that are open: one fd (and vhost fd) a queue."""

    id: str
    mac: str
    fds: tuple[int, ...]
    vhost_fds: tuple[int, ...] = ()


class NetworkAgent(Protocol):
    """What is asked of the guest's agent. Fails as every call of `pod.ports.Agent` does."""

    async def update_interface(self, interface: Interface) -> None: ...

    async def update_routes(self, routes: tuple[Route, ...]) -> None:
        """Replace all routes but those that the guest's kernel made itself."""
        ...

    async def add_neighbours(self, neighbours: tuple[Neighbour, ...]) -> None: ...


class ConnectAgent(Protocol):
    """What a connection into the guest takes; the calls are `pod.ports.Agent`'s."""

    async def features(self) -> frozenset[str]:
        """What the agent can do beyond Kata's protocol."""
        ...

    async def exec_process(self, container_id: str, exec_id: str, process: Mapping[str, Any]) -> None: ...

    async def signal_process(self, container_id: str, exec_id: str, signal: int) -> None: ...

    async def wait_process(self, container_id: str, exec_id: str) -> int: ...

    async def read_stdout(self, container_id: str, exec_id: str, length: int) -> bytes: ...

    async def write_stdin(self, container_id: str, exec_id: str, data: bytes) -> int: ...

    async def close_stdin(self, container_id: str, exec_id: str) -> None: ...


class ForwardRecord(Protocol):
    """Which execs in the guest carry connections, for a daemon that comes after this one and has none of these connections."""

    def forwards(self) -> list[str]:
        """Of an earlier daemon."""
        ...

    def record_forward(self, name: str, *, there: bool) -> None: ...


class NicPlug(Protocol):
    """What is asked of the running VM."""

    async def plug_nic(self, nic: Nic) -> str:
        """Plug a device in; its PCI path, as Kata's agent reads it.

        :raises VmFailed, DeadlineExceeded: QEMU would not, or has no free port
        """
        ...

    async def unplug_nic(self, nic_id: str) -> None:
        """Take a device that `plug_nic` put in out again."""
        ...
