"""QEMU's command line against golden files, one option a line.

`KATA_SHIMD_WRITE_GOLDEN=1 pytest` writes them anew; the difference is then reviewed.
"""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from kata_shimd.pod.network import Nic
from kata_shimd.vm.accel import Accelerator
from kata_shimd.vm.argv import argv
from kata_shimd.vm.spec import ExtraMonitor, ShareSpec, Transport, VmSpec, Vsock, Wires

GOLDEN = Path(__file__).parent / "testdata"
GUEST = Path("/var/lib/kata-shimd/guest/current")

TCG = VmSpec(
    name="sandbox-7f3c",
    uuid="8d0d4a4e-7a55-4b0e-9c57-0f2f1c1a6f10",
    qemu=Path("/usr/bin/qemu-system-x86_64"),
    accelerator=Accelerator.TCG,
    kernel=GUEST / "vmlinuz",
    initrd=GUEST / "initrd.img",
    image=GUEST / "rootfs.img",
    share=ShareSpec(programs=(Path("/usr/libexec/virtiofsd"),)),
    kernel_params=("cgroup_no_v1=all", "systemd.unified_cgroup_hierarchy=1"),
    memory_mib=512,
    max_memory_mib=8192,
    max_vcpus=2,
)
#: Kata's image and agent on a host with KVM and vhost-vsock.
KATA = Path("/opt/kata/share/kata-containers")
KVM = replace(
    TCG,
    accelerator=Accelerator.KVM,
    kernel=KATA / "vmlinux.container",
    image=KATA / "kata-containers.img",
    initrd=None,
    image_fstype="ext4",
    image_partition=1,
    memory_mib=2048,
    max_memory_mib=32768,
    max_vcpus=16,
)
TAP = Nic(id="network-0", mac="02:42:ac:11:00:02", fds=(20,), vhost_fds=(30,))
QUEUES = Nic(id="network-1", mac="02:42:ac:11:00:03", fds=(21, 22), vhost_fds=(31, 32))
USER_NET = Nic(id="network-2", mac="02:42:ac:11:00:04", fds=(23,))

WIRES = Wires(monitor=10, debug_monitor=11, console=12, share=13, agent=14)
VSOCK = replace(WIRES, agent=None, vsock=Vsock(cid=3405691582, vhost_fd=15))

CASES = {
    "tcg": (TCG, WIRES),
    "kvm": (KVM, WIRES),
    "vsock": (replace(KVM, transport=Transport.VSOCK), VSOCK),
    "taps": (replace(TCG, nics=(TAP, QUEUES, USER_NET)), WIRES),
    "debug": (replace(TCG, debug=True, extra_monitor=ExtraMonitor.HMP), replace(WIRES, extra_monitor=16)),
    "template": (TCG, replace(WIRES, share=None, memory=17)),
    "clone": (replace(TCG, incoming=True), replace(WIRES, memory=17)),
    "options": (
        replace(TCG, machine_options="usb=off", cpu_features="-vmx", sandbox="", root_ports=9, max_memory_mib=0),
        WIRES,
    ),
}


def lines(words):
    """An option and its value on one line."""
    text = words[0]
    for word in words[1:]:
        text += ("\n" if word.startswith("-") else " ") + word
    return text + "\n"


@pytest.mark.parametrize("case", CASES)
def test_command_line(case):
    spec, wires = CASES[case]
    path = GOLDEN / f"{case}.argv"
    text = lines(argv(spec, wires))
    if os.environ.get("KATA_SHIMD_WRITE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


def test_every_golden_file_is_of_a_case():
    assert {file.stem for file in GOLDEN.glob("*.argv") if not file.stem.startswith("virtiofsd-")} == set(CASES)


def test_a_comma_in_a_path_is_no_new_option():
    words = argv(replace(TCG, image=Path("/images/a,b.img"), name="pod,readonly=on"), WIRES)
    assert any(word.endswith("file.filename=/images/a,,b.img") for word in words)
    assert "pod,,readonly=on,debug-threads=on" in words


def test_every_descriptor_on_the_command_line_is_one_that_qemu_gets():
    spec, wires = CASES["vsock"]
    used = {int(part.partition("=")[2]) for word in argv(spec, wires) for part in word.split(",") if "fd=" in part}
    assert used == set(wires.fds())


def test_root_ports_have_addresses_of_their_own():
    spec, wires = CASES["options"]
    ports = [word for word in argv(spec, wires) if word.startswith("pcie-root-port")]
    assert len({port.partition("addr=")[2].removesuffix(",multifunction=on") for port in ports}) == spec.root_ports == 9
