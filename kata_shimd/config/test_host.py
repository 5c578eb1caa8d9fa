"""What a host has, asked of directories made for the purpose."""

from dataclasses import replace
from pathlib import Path

import pytest

from kata_shimd.config import defaults
from kata_shimd.config.host import Verdict, check_host, find_virtiofsd
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


@pytest.mark.parametrize(
    ("setting", "obstacle", "verdict", "why"),
    [
        (AcceleratorSetting.AUTO, "", Verdict.PASS, "kvm"),
        (AcceleratorSetting.AUTO, "no vmx", Verdict.WARN, "tcg, slow: no vmx"),
        (AcceleratorSetting.KVM, "", Verdict.PASS, "kvm"),
        (AcceleratorSetting.KVM, "no vmx", Verdict.FAIL, "no vmx"),
        (AcceleratorSetting.TCG, "no vmx", Verdict.PASS, "tcg: configured"),
    ],
)
def test_missing_kvm_fails_only_when_kvm_was_asked_for(config, setting, obstacle, verdict, why):
    asked = replace(config, shimd=replace(config.shimd, accelerator=setting))
    (finding,) = [found for found in check_host(asked, kvm_obstacle=lambda: obstacle) if found.name == "accelerator"]
    assert (finding.verdict, finding.why) == (verdict, why)
    assert bool(finding.fix) is (verdict is not Verdict.PASS)


def test_accelerator_is_left_out_when_nobody_can_be_asked(config):
    assert "accelerator" not in verdicts(config)
