"""What a template depends on changes its name; what is a pod's own does not."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from kata_shimd.errors import HostFailed
from kata_shimd.pod.network import Nic
from kata_shimd.vm.accel import Accelerator
from kata_shimd.vm.spec import ExtraMonitor, ShareSpec, VmSpec
from kata_shimd.vm.template import key


@pytest.fixture
def spec(tmp_path):
    files = {name: tmp_path / name for name in ("qemu", "kernel", "initrd", "image")}
    for path in files.values():
        path.write_text("as it was")
    share = ShareSpec(programs=(Path("/usr/libexec/virtiofsd"),))
    return VmSpec(name="pod", uuid="1", accelerator=Accelerator.TCG, share=share, **files)


def name(spec):
    return key.name(key.inputs(spec))


OWN = {
    "name": "other",
    "uuid": "2",
    "nics": (Nic(id="n", mac="02:00:00:00:00:01", fds=(9,)),),
    "extra_monitor": ExtraMonitor.HMP,
    "share": ShareSpec(programs=(Path("/other"),)),
    "console_log_bytes": 1,
}
SHARED = {
    "accelerator": Accelerator.KVM,
    "memory_mib": 1024,
    "max_memory_mib": 4096,
    "vcpus": 2,
    "max_vcpus": 4,
    "kernel_params": ("a=b",),
    "machine_options": "usb=off",
    "cpu_features": "-vmx",
    "sandbox": "",
    "root_ports": 9,
    "debug": True,
    "entropy": Path("/dev/random"),
}


@pytest.mark.parametrize("field", OWN)
def test_what_is_the_pods_own_does_not_matter(spec, field):
    assert name(replace(spec, **{field: OWN[field]})) == name(spec)


@pytest.mark.parametrize("field", SHARED)
def test_what_is_in_the_machine_does(spec, field):
    assert name(replace(spec, **{field: SHARED[field]})) != name(spec)


@pytest.mark.parametrize("file", ["qemu", "kernel", "initrd", "image"])
def test_a_file_that_was_replaced_does(spec, file):
    before = name(spec)
    path = getattr(spec, file)
    path.rename(path.with_suffix(".old"))
    path.write_text("as it was")
    assert name(spec) != before


def test_the_same_file_by_another_name_is_the_same(spec, tmp_path):
    before = key.inputs(spec)["files"]
    (tmp_path / "current").symlink_to(spec.image)
    assert key.inputs(replace(spec, image=tmp_path / "current"))["files"] == before


@pytest.mark.parametrize("what", ["FORMAT", "BOOT_ID"])
def test_format_and_boot_do(spec, what, tmp_path, monkeypatch):
    before = name(spec)
    (tmp_path / "boot").write_text("another")
    monkeypatch.setattr(key, what, key.FORMAT + 1 if what == "FORMAT" else tmp_path / "boot")
    assert name(spec) != before


def test_a_clone_is_the_pod_on_the_templates_machine(spec):
    spec = replace(spec, nics=OWN["nics"])
    clone, original = key.clone(spec), key.original(spec)
    assert (clone.name, clone.uuid, clone.nics, clone.incoming) == ("pod", "1", (), True)
    assert clone.root_ports == original.root_ports == spec.root_ports + key.EXTRA_PORTS
    assert replace(clone, name=original.name, uuid=original.uuid, incoming=False) == original


def test_a_file_that_is_missing_is_said(spec):
    spec.image.unlink()
    with pytest.raises(HostFailed, match=r"look for template: .*image: No such file"):
        key.inputs(spec)


def test_what_it_was_made_from_holds_until_a_file_is_replaced(spec):
    depends = key.inputs(spec)
    assert key.holds(json.loads(json.dumps(depends)))
    spec.kernel.rename(spec.kernel.with_suffix(".old"))
    assert not key.holds(depends)
    spec.kernel.write_text("as it was")
    assert not key.holds(depends)


def test_what_it_was_made_from_holds_for_one_boot(spec, tmp_path, monkeypatch):
    depends = key.inputs(spec)
    (tmp_path / "boot").write_text("another")
    monkeypatch.setattr(key, "BOOT_ID", tmp_path / "boot")
    assert not key.holds(depends)


@pytest.mark.parametrize("depends", [{}, {"boot": 1}, {"boot": key._boot(), "files": {"qemu": []}}])
def test_what_says_nothing_of_it_does_not_hold(depends):
    assert not key.holds(depends)
