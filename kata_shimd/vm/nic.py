"""Network devices plugged into a running VM, and taken out of it again, by QMP.

Which root port is free is asked of QEMU, so that whoever else plugs things in is seen, and a later daemon needs no memory.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from kata_shimd.errors import VmFailed
from kata_shimd.pod.network import Nic
from kata_shimd.vm.argv import root_port_address
from kata_shimd.vm.monitor import Monitor

_PORT: Final = "rp"


async def plug(monitor: Monitor, nic: Nic) -> str:
    """Plug ``nic`` into a free root port.

    :returns: its PCI path, as the agent reads it: slot of the port, slot on its bus
    :raises VmFailed: no port is free, or QEMU refused
    """
    port = _free_port(await monitor.execute("query-pci"), nic.id)
    backend: dict[str, Any] = {"type": "tap", "id": nic.id, "fds": await _send(monitor, nic.id, nic.fds)}
    if nic.vhost_fds:
        backend |= {"vhost": True, "vhostfds": await _send(monitor, f"{nic.id}-vhost", nic.vhost_fds)}
    await monitor.execute("netdev_add", backend)
    try:
        await monitor.execute("device_add", _device(nic, port))
    except VmFailed:
        await monitor.execute("netdev_del", {"id": nic.id})
        raise
    return f"{root_port_address(int(port.removeprefix(_PORT)))}/00"


async def unplug(monitor: Monitor, nic_id: str, *, timeout: float) -> None:
    """Take it out, waiting until the guest has let go.

    :raises DeadlineExceeded: it has not
    """
    await monitor.device_del(f"{nic_id}-nic", timeout=timeout)
    await monitor.execute("netdev_del", {"id": nic_id})


async def _send(monitor: Monitor, name: str, fds: tuple[int, ...]) -> str:
    names = [f"{name}-{number}" for number in range(len(fds))]
    for each, fd in zip(names, fds, strict=True):
        await monitor.send_fd(each, fd)
    return ":".join(names)


def _device(nic: Nic, port: str) -> dict[str, Any]:
    several = {"mq": True, "vectors": 2 * len(nic.fds) + 2} if len(nic.fds) > 1 else {}
    return {
        "driver": "virtio-net-pci",
        "id": f"{nic.id}-nic",
        "netdev": nic.id,
        "mac": nic.mac,
        "bus": port,
        "romfile": "",
        **several,
    }


def _free_port(answer: object, obj: str) -> str:
    for device in _devices(answer):
        bridge = device.get("pci_bridge") or {}
        if str(device.get("qdev_id", "")).startswith(_PORT) and not bridge.get("devices"):
            return str(device["qdev_id"])
    raise VmFailed("plug network device", obj, "no PCIe root port is free", hint="set pcie_root_port higher")


def _devices(answer: object) -> Iterator[Mapping[str, Any]]:
    for bus in answer if isinstance(answer, list) else ():
        yield from bus.get("devices", ())
