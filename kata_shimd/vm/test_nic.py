"""Network devices plugged in by QMP: which port, which words, and what is taken back when QEMU refuses."""

import os

import pytest

from kata_shimd.errors import VmFailed
from kata_shimd.pod.network import Nic
from kata_shimd.vm import nic
from kata_shimd.vm.test_monitor import connected


def port(name, *devices):
    return {"qdev_id": name, "pci_bridge": {"bus": {}, **({"devices": list(devices)} if devices else {})}}


def pci(*ports):
    return {"return": [{"bus": 0, "devices": [{"qdev_id": "image0"}, *ports]}]}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "qmp.sock"


@pytest.fixture
def fds():
    made = [os.open(os.devnull, os.O_RDONLY) for _ in range(4)]
    yield tuple(made)
    for fd in made:
        os.close(fd)


def test_a_device_in_the_first_free_port(path, run, fds):
    one = Nic(id="net3", mac="02:00:00:00:00:03", fds=fds[:1])

    async def body():
        answers = {"query-pci": pci(port("rp0", {"qdev_id": "x"}), port("rp1"), port("rp2"))}
        async with connected(path, answers) as (monitor, qemu, _):
            return await nic.plug(monitor, one), qemu.asked, len(qemu.fds)

    where, commands, passed = run(body())
    assert where == "10.1/00"
    assert commands == ["qmp_capabilities", "query-pci", "getfd", "netdev_add", "device_add"]
    assert passed == 1


def test_several_queues_and_vhost(path, run, fds):
    several = Nic(id="net3", mac="02:00:00:00:00:03", fds=fds[:2], vhost_fds=fds[2:])

    async def body():
        async with connected(path, {"query-pci": pci(port("rp8"))}) as (monitor, qemu, _):
            return await nic.plug(monitor, several), qemu.words

    where, words = run(body())
    assert where == "11.0/00"
    assert words["netdev_add"] == {
        "type": "tap", "id": "net3", "fds": "net3-0:net3-1", "vhost": True, "vhostfds": "net3-vhost-0:net3-vhost-1",
    }  # fmt: skip
    assert words["device_add"] == {
        "driver": "virtio-net-pci", "id": "net3-nic", "netdev": "net3", "mac": "02:00:00:00:00:03", "bus": "rp8",
        "romfile": "", "mq": True, "vectors": 6,
    }  # fmt: skip


@pytest.mark.parametrize("ports", [(), (port("rp0", {"qdev_id": "x"}),), (port("pcie.1"),)])
def test_no_port_is_free(path, run, fds, ports):
    async def body():
        async with connected(path, {"query-pci": pci(*ports)}) as (monitor, qemu, _):
            with pytest.raises(
                VmFailed, match="plug network device: net3: no PCIe root port is free; set pcie_root_port"
            ):
                await nic.plug(monitor, Nic(id="net3", mac="m", fds=fds[:1]))
            return qemu.asked

    assert run(body()) == ["qmp_capabilities", "query-pci"]


def test_a_device_that_qemu_refuses_leaves_no_backend(path, run, fds):
    refusal = {"error": {"class": "GenericError", "desc": "Bus 'rp0' does not support hotplugging"}}

    async def body():
        async with connected(path, {"query-pci": pci(port("rp0")), "device_add": refusal}) as (monitor, qemu, _):
            with pytest.raises(VmFailed, match="does not support hotplugging"):
                await nic.plug(monitor, Nic(id="net3", mac="m", fds=fds[:1]))
            return qemu.asked[-1], qemu.words["netdev_del"]

    assert run(body()) == ("netdev_del", {"id": "net3"})


def test_unplugging_waits_for_the_guest(path, run):
    def deleted(qemu):
        qemu.say(
            {"event": "DEVICE_DELETED", "data": {"device": "net3-nic"}, "timestamp": {"seconds": 1, "microseconds": 1}}
        )
        return {"return": {}}

    async def body():
        async with connected(path, {"device_del": deleted}) as (monitor, qemu, _):
            await nic.unplug(monitor, "net3", timeout=5)
            return qemu.asked

    assert run(body()) == ["qmp_capabilities", "device_del", "netdev_del"]
