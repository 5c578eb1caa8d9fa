"""What a host has, asked of directories made for the purpose; KVM of the real device where the machine has one."""

from dataclasses import replace
from pathlib import Path

import pytest

from kata_shimd.config import Accelerator, defaults
from kata_shimd.config.host import Verdict, check_host, choose_accelerator, find_virtiofsd, kvm_fault
from kata_shimd.config.model import AcceleratorSetting, AgentTransport
from kata_shimd.errors import NotFound


def program(path):
    path.write_text("#!/bin/false\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def config(tmp_path):
    """A configuration whose files all exist."""
    for name in ("vmlinuz", "initrd.img", "rootfs.img"):
        (tmp_path / name).write_text("")
    base = defaults()
    hypervisor = replace(
        base.hypervisor,
        path=program(tmp_path / "qemu"),
        virtio_fs_daemon=(tmp_path / "absent", program(tmp_path / "virtiofsd")),
        kernel=tmp_path / "vmlinuz",
        initrd=tmp_path / "initrd.img",
        image=tmp_path / "rootfs.img",
        default_vcpus=1,
        default_memory_mib=256,
    )
    return replace(base, hypervisor=hypervisor)


def changed(config, **fields):
    return replace(config, hypervisor=replace(config.hypervisor, **fields))


def verdicts(config, files=()):
    return {finding.name: finding.verdict for finding in check_host(config, files)}


def test_what_is_there_passes(config):
    found = verdicts(config)
    for name in ("qemu", "virtiofsd", "kernel", "initrd", "image", "entropy", "vcpus", "memory"):
        assert found[name] is Verdict.PASS, name


@pytest.mark.parametrize(
    ("name", "field"),
    [("qemu", "path"), ("kernel", "kernel"), ("image", "image"), ("initrd", "initrd"), ("entropy", "entropy_source")],
)
def test_what_is_missing_fails_with_a_way_out(config, name, field):
    (finding,) = [found for found in check_host(changed(config, **{field: Path("/nonexistent")})) if found.name == name]
    assert finding.verdict is Verdict.FAIL
    assert "/nonexistent" in finding.why
    assert finding.fix


def test_program_that_cannot_be_executed_fails(config):
    config.hypervisor.path.chmod(0o644)
    assert verdicts(config)["qemu"] is Verdict.FAIL


def test_configured_guest_needs_no_initrd(config):
    assert "initrd" not in verdicts(changed(config, initrd=None))


def test_too_much_memory_fails_and_too_many_vcpus_are_cut(config):
    found = verdicts(changed(config, default_memory_mib=2**31, default_vcpus=100_000))
    assert (found["memory"], found["vcpus"]) == (Verdict.FAIL, Verdict.WARN)


def test_bind_mounts_must_exist(config, tmp_path):
    runtime = replace(config.runtime, sandbox_bind_mounts=(tmp_path, tmp_path / "absent"))
    found = [
        finding.verdict
        for finding in check_host(replace(config, runtime=runtime))
        if finding.name == "sandbox_bind_mounts"
    ]
    assert found == [Verdict.PASS, Verdict.FAIL]


@pytest.mark.parametrize(("mode", "verdict"), [(0o644, Verdict.PASS), (0o664, Verdict.WARN), (0o646, Verdict.WARN)])
def test_file_that_others_may_write_is_warned_of(config, tmp_path, mode, verdict):
    file = tmp_path / "c.toml"
    file.write_text("")
    file.chmod(mode)
    assert verdicts(config, [file])["configuration"] is verdict


def test_devices_are_asked_for_only_when_used(config):
    plain = verdicts(changed(config, disable_vhost_net=True))
    assert not {"vhost-net", "vsock"} & set(plain)
    assert "vsock" in verdicts(replace(config, shimd=replace(config.shimd, agent_transport=AgentTransport.VSOCK)))


def test_find_virtiofsd_takes_the_first_that_exists(config, tmp_path):
    assert find_virtiofsd(config) == tmp_path / "virtiofsd"


def test_find_virtiofsd_names_every_place(config):
    with pytest.raises(NotFound, match="/nonexistent/a, /nonexistent/b"):
        find_virtiofsd(changed(config, virtio_fs_daemon=(Path("/nonexistent/a"), Path("/nonexistent/b"))))


# The accelerator (`host.md`): a device that makes VMs is not enough, the CPU must virtualise too.


@pytest.fixture
def cpuinfo(tmp_path):
    def write(flags):
        path = tmp_path / "cpuinfo"
        path.write_text(f"processor\t: 0\nflags\t\t: fpu {flags} sse\n\nprocessor\t: 1\n")
        return path

    return write


@pytest.mark.parametrize(
    ("fault", "flags", "accelerator"),
    [
        ("", "vmx", Accelerator.KVM),
        ("", "svm", Accelerator.KVM),
        ("", "", Accelerator.TCG),
        ("/dev/kvm: Permission denied", "vmx", Accelerator.TCG),
    ],
)
def test_auto_takes_kvm_only_with_a_working_device_and_a_cpu_for_it(cpuinfo, fault, flags, accelerator):
    chosen = choose_accelerator(AcceleratorSetting.AUTO, kvm=lambda: fault, cpuinfo=cpuinfo(flags))
    assert chosen.accelerator is accelerator
    assert chosen.why


@pytest.mark.parametrize("setting", [AcceleratorSetting.KVM, AcceleratorSetting.TCG])
def test_explicit_accelerator_wins_without_a_look(setting):
    def never():
        raise AssertionError("must not look")

    assert choose_accelerator(setting, kvm=never).accelerator == setting.value


def test_no_cpuinfo_means_tcg(tmp_path):
    assert choose_accelerator(AcceleratorSetting.AUTO, kvm=str, cpuinfo=tmp_path / "x").accelerator is Accelerator.TCG


def test_kvm_fault_says_what_is_wrong_with_a_device(tmp_path):
    assert kvm_fault(tmp_path / "kvm") == f"{tmp_path / 'kvm'}: No such file or directory"
    assert kvm_fault(Path("/dev/null")) == "/dev/null: cannot create a VM: Inappropriate ioctl for device"
