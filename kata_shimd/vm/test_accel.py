"""Which accelerator is chosen, and the reason that is given."""

import errno
import os
from dataclasses import replace

import pytest

from kata_shimd.errors import HostFailed
from kata_shimd.vm.accel import Accelerator, Host, Setting, choose, device_groups

VMX = "processor\t: 0\nflags\t\t: fpu vme vmx sse\nprocessor\t: 1\nflags\t\t: fpu\n"
PLAIN = "processor\t: 0\nflags\t\t: fpu vme sse\n"


def works(fd):
    return os.dup(fd)


def refuses(fd):
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))


@pytest.fixture
def host(tmp_path):
    (tmp_path / "kvm").touch()
    (tmp_path / "cpuinfo").write_text(VMX)
    return Host(machine="x86_64", device=tmp_path / "kvm", cpuinfo=tmp_path / "cpuinfo", create_vm=works)


def test_kvm_when_the_device_and_the_cpu_can(host):
    assert choose(host=host).accelerator is Accelerator.KVM


def test_svm_will_do(host):
    host.cpuinfo.write_text(VMX.replace("vmx", "svm"))
    assert choose(host=host).accelerator is Accelerator.KVM


def test_a_cpu_without_the_extension_is_emulated_and_the_reason_names_it(host):
    """A PVM host: KVM_CREATE_VM works and a stock guest hangs (`host.md`)."""
    host.cpuinfo.write_text(PLAIN)
    choice = choose(host=host)
    assert choice.accelerator is Accelerator.TCG
    assert "none of svm, vmx" in choice.why


def test_other_architectures_need_no_flag(host):
    host.cpuinfo.write_text("processor : 0\nFeatures : fp asimd\n")
    assert choose(host=replace(host, machine="aarch64")).accelerator is Accelerator.KVM


def test_no_device(host):
    host.device.unlink()
    choice = choose(host=host)
    assert choice.accelerator is Accelerator.TCG
    assert str(host.device) in choice.why
    assert os.strerror(errno.ENOENT) in choice.why


def test_a_device_that_makes_no_vm_leaks_no_descriptor(host, descriptors):
    before = descriptors()
    choice = choose(host=replace(host, create_vm=refuses))
    assert (choice.accelerator, "KVM_CREATE_VM" in choice.why) == (Accelerator.TCG, True)
    assert descriptors() == before


def test_success_leaks_no_descriptor(host, descriptors):
    before = descriptors()
    choose(host=host)
    assert descriptors() == before


@pytest.mark.parametrize("setting", [Setting.KVM, Setting.TCG])
def test_an_explicit_setting_wins_unasked(host, setting):
    host.device.unlink()
    assert choose(setting, host).accelerator == setting.value


def test_an_unreadable_cpuinfo_is_no_reason_to_fail(host):
    host.cpuinfo.unlink()
    assert choose(host=host).accelerator is Accelerator.TCG


@pytest.mark.parametrize(("mode", "groups"), [(0o666, 0), (0o660, 1)])
def test_groups_that_open_the_device(host, mode, groups):
    host.device.chmod(mode)
    assert device_groups(host.device) == (host.device.stat().st_gid,) * groups


def test_a_device_for_root_only_cannot_be_used_by_an_unprivileged_qemu(host):
    host.device.chmod(0o600)
    with pytest.raises(HostFailed, match="group kvm"):
        device_groups(host.device)
