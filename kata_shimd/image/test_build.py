"""What a guest's digest depends on, and that building refuses what cannot boot. Real builds are in integration/image."""

import hashlib

import pytest

from kata_shimd.errors import InvalidArgument, NotFound, Unimplemented
from kata_shimd.image import build
from kata_shimd.image.build import Programs, make_plan
from kata_shimd.image.debian import Package
from kata_shimd.image.elf_testing import program
from kata_shimd.image.manifest import default_text

DEPENDS = {"linux-image-cloud-amd64": (("linux-image-6.1-cloud-amd64",),), "crun": (("libc6",),)}


def show(names, version="1"):
    return [
        Package(name, version, hashlib.sha256(name.encode()).hexdigest(), f"{name}.deb", DEPENDS.get(name, ()))
        for name in names
    ]


@pytest.fixture
def programs(tmp_path):
    found = Programs(tmp_path / "agent", tmp_path / "init", tmp_path / "trivial")
    for path in (found.agent, found.init, found.trivial):
        path.write_bytes(program("", []))
    return found


@pytest.fixture(autouse=True)
def tools(monkeypatch):
    """What dpkg and mksquashfs say about themselves."""
    said = {"architecture": b"amd64\n", "version": "mksquashfs version 4.5.1"}
    monkeypatch.setattr(build, "run", lambda step, obj, argv: said["architecture"])
    monkeypatch.setattr(build, "version_line", lambda *argv: said["version"])
    return said


def test_plan_has_the_kernel_apart_from_the_userland(programs):
    plan = make_plan(default_text(), programs, show)
    assert plan.kernel.name == "linux-image-6.1-cloud-amd64"
    assert [package.name for package in plan.packages] == ["busybox-static", "crun", "libc6"]


def test_equal_inputs_have_equal_digests(programs):
    assert make_plan(default_text(), programs, show).digest == make_plan(default_text(), programs, show).digest


def test_every_input_changes_the_digest(programs, tools):
    digests = [make_plan(default_text(), programs, show).digest]
    digests.append(make_plan(default_text() + "\n", programs, show).digest)
    digests.append(make_plan(default_text(), programs, lambda names: show(names, "2")).digest)
    tools["version"] = "mksquashfs version 4.6"
    digests.append(make_plan(default_text(), programs, show).digest)
    programs.agent.write_bytes(program("", []) + b"newer")
    digests.append(make_plan(default_text(), programs, show).digest)
    assert len(set(digests)) == 5
    assert all(len(digest) == 20 for digest in digests)


def test_a_program_that_is_not_there_is_named(programs):
    programs.init.unlink()
    with pytest.raises(NotFound, match=r"read program: .*/init: no such file; .* --init"):
        make_plan(default_text(), programs, show)


def test_a_dynamic_program_is_refused(programs):
    programs.agent.write_bytes(program("/lib64/ld-linux-x86-64.so.2", ["libc.so.6"]))
    with pytest.raises(InvalidArgument, match=r"not static, it asks for /lib64/ld-linux.*crt-static"):
        make_plan(default_text(), programs, show)


def test_another_architecture_is_refused(programs, tools):
    tools["architecture"] = b"arm64\n"
    with pytest.raises(Unimplemented, match="build guest: arm64: the manifest and our programs are for amd64"):
        make_plan(default_text(), programs, show)
