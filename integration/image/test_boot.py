"""Booting: the trivial guest, the default one with a probe for its agent, with the agent itself, and without a root."""

import os
import re

import pytest

from integration.image.machine import Boot, Machine
from kata_shimd.image.build import Programs, build_guest
from kata_shimd.image.manifest import default_text
from kata_shimd.image.store import Store

pytestmark = pytest.mark.vm

#: MiB that a guest may need for itself before the first container (page cache not counted).
MEMORY_AIM = 60
#: TAINT_UNSIGNED_MODULE; the builder takes the signatures off.
UNSIGNED_MODULE = 1 << 13


def tell(record_property, **values):
    """Measurements go into the report; they are no assertions, the machine is shared."""
    for name, value in values.items():
        record_property(name, value)
        print(f"{name}: {value}")


def default(directory, **options):
    return Boot(directory / "vmlinuz", directory / "initrd.img", directory / "rootfs.img", **options)


def test_trivial_guest_says_ready(guest, record_property):
    with Machine(Boot(guest / "vmlinuz", guest / "trivial.img")) as machine:
        assert machine.until("port", "ready\n") == "ready\n"
        tell(record_property, trivial_ready_s=round(machine.age, 2))
        assert "trivial-init: ready" in machine.until("console", "ready")


@pytest.mark.parametrize("memory", [512, 2048])
def test_default_guest_reaches_its_agent_with_all_it_needs(probed, memory, record_property):
    with Machine(default(probed, memory=memory)) as machine:
        machine.until("console", "MemTotal:")
        tell(record_property, agent_exec_s=round(machine.age, 2))
        said = machine.until("console", "probe: end", within=20)
    found = [tuple(line.split(": ", 1)) for line in said.splitlines() if ": " in line]
    facts = dict(found)
    assert facts["pid"] == "1"
    assert {path: facts[f"mount {path}"] for path in ("/", "/dev", "/proc", "/sys")} == {
        "/": "overlay",
        "/dev": "devtmpfs",
        "/proc": "proc",
        "/sys": "sysfs",
    }
    assert not [name for name in facts if name.startswith("mount ") and name.count("/") > 1], "a layer is to be seen"
    assert facts["initramfs left"] == "0"
    loaded = {value for name, value in found if name == "module"}
    assert {"virtio_net", "virtiofs", "virtio_blk", "overlay"} <= loaded
    assert not {"virtio_scsi", "scsi_mod", "vsock", "virtio_rng"} & loaded, "no such device is there"
    assert [value for name, value in found if name == "modprobe"] == ["xfs", "nft_chain_nat", "ext4", "overlay"]
    assert facts["crun"].startswith("crun version")
    assert facts["taint"] == str(UNSIGNED_MODULE), "and by nothing else"
    assert (facts["resolv.conf"], facts["tmp"]) == ("0", "1777")
    assert facts["container"] == "1", "crun pivots into a root of its own"
    used = (kib(facts["MemTotal"]) - kib(facts["MemFree"]) - kib(facts["Cached"]) - kib(facts["Buffers"])) / 1024
    missing = (kib(facts["MemTotal"]) - kib(facts["MemAvailable"])) / 1024
    tell(record_property, memory_mib=memory, used_mib=round(used, 1), not_available_mib=round(missing, 1))
    assert used <= MEMORY_AIM


def test_drivers_are_loaded_for_the_devices_that_are_there(probed):
    devices = ("-device", "virtio-scsi-pci", "-device", "virtio-rng-pci", "-device", "virtio-balloon-pci")
    with Machine(default(probed, devices=devices)) as machine:
        said = machine.until("console", "probe: end", within=20)
    loaded = set(re.findall(r"^module: (\S+)$", said, re.MULTILINE))
    assert {"virtio_scsi", "scsi_mod", "sd_mod", "virtio_rng", "virtio_balloon"} <= loaded
    assert not {"vsock", "virtio_mem"} & loaded


def test_agent_answers_a_session(guest, record_property):
    """docs/contracts.md, "Guest channel"."""
    session = os.urandom(16)
    with Machine(default(guest)) as machine:
        machine.send(b"KATA-SHIMD-HELO\n" + os.urandom(32) + session)
        machine.until("port", "KATA-SHIMD-ACK0\n")
        tell(record_property, agent_ack_s=round(machine.age, 2))
        assert b"KATA-SHIMD-ACK0\n" + session in machine.said["port"]


@pytest.mark.parametrize(
    ("parameter", "cause"),
    [
        ("root=", "find the root image: root=: not on the kernel command line"),
        ("rootfstype=ext4", r"mount the root image: /dev/vda: Invalid argument"),
        ("rootfstype=nosuchfs", r"mount the root image: /dev/vda: No such device"),
    ],
)
def test_a_guest_without_its_root_says_why_and_ends(probed, parameter, cause):
    """The last of several equal parameters wins. QEMU ends because the guest restarts, which --no-reboot forbids."""
    with Machine(default(probed, append=parameter)) as machine:
        assert re.search(f"guest-init: {cause}", machine.until_end())


def test_an_agent_that_cannot_run_says_why_and_ends(programs, cache, tmp_path):
    (tmp_path / "agent").write_text("#!/no/such/interpreter\n")
    broken = Programs(tmp_path / "agent", programs.init, programs.trivial)
    store = Store(tmp_path / "guest")
    built = store.directory / build_guest(default_text(), broken, store=store, cache=cache)
    with Machine(default(built)) as machine:
        assert "guest-init: run: /sbin/kata-agent: No such file or directory" in machine.until_end()


def kib(value):
    return int(value.removesuffix(" kB"))
