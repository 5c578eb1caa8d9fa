"""Boots that fail: each says the step, the thing, what was last heard of it, and what to do."""

import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from integration.harness.scale import SCALE
from integration.vm.site import BUDGETS, SPEC
from kata_shimd.errors import HostFailed, VmFailed
from kata_shimd.vm import sockets


@pytest.fixture
def guest():
    """A directory for guest files that QEMU's user can read."""
    directory = Path(tempfile.mkdtemp(prefix="ks-guest-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


def garbage(path):
    path.write_bytes(os.urandom(1 << 16))
    path.chmod(0o644)
    return path


def test_no_qemu(site, run):
    error = run(site.fails(replace(SPEC, qemu=Path("/nowhere/qemu"))))
    assert isinstance(error, HostFailed)
    assert str(error) == "start QEMU: /nowhere/qemu: not found or not executable; install QEMU, or set path"


def test_no_kernel(site, run):
    error = run(site.fails(replace(SPEC, kernel=Path("/nowhere/vmlinuz"))))
    assert str(error).startswith("open guest kernel: /nowhere/vmlinuz: No such file or directory; build the guest")


def test_no_virtiofsd(site, run):
    error = run(site.fails(replace(SPEC, share=replace(SPEC.share, programs=(Path("/nowhere/virtiofsd"),)))))
    assert str(error).startswith("start virtiofsd: /nowhere/virtiofsd: not found or not executable")
    assert not site.ledger.state.live


def test_no_launcher(site, run):
    site.gate = replace(site.gate, launcher=Path("/nowhere/launcher"))
    assert "/nowhere/launcher: No such file" in str(run(site.fails()))


def test_a_socket_path_that_is_taken(site, run):
    with sockets.listen(site.pod_dir / sockets.MONITOR):
        error = run(site.fails())
    assert isinstance(error, HostFailed)
    assert str(error) == f"bind socket: {site.pod_dir}/qmp.sock: Address already in use"


def test_qemu_that_refuses_its_options_is_quoted(site, run):
    error = run(site.fails(replace(SPEC, machine_options="no-such-option=on")))
    assert isinstance(error, VmFailed)
    assert "QEMU exited with status 1" in str(error)
    assert "no-such-option" in str(error)


def test_a_kernel_that_is_none(site, run, guest):
    error = run(site.fails(replace(SPEC, kernel=garbage(guest / "vmlinuz")), dial=True))
    assert isinstance(error, VmFailed)
    assert "QEMU" in str(error)


def test_a_kernel_that_qemu_may_not_read_is_hinted_at(site, run, guest):
    kernel = garbage(guest / "vmlinuz")
    kernel.chmod(0o600)
    error = run(site.fails(replace(SPEC, kernel=kernel)))
    assert isinstance(error, VmFailed)
    assert "Permission denied" in str(error)
    assert error.hint == f"QEMU runs without privileges and may not read {kernel}"


def test_a_guest_that_cannot_mount_its_root_is_quoted(site, run, guest):
    """Kata's oldest complaint: one message for every reason a guest did not come up (`users.md` §1, 3)."""
    error = run(site.fails(replace(SPEC, image=garbage(guest / "rootfs.img")), dial=True))
    assert isinstance(error, VmFailed)
    assert error.step == "dial agent"
    assert "the guest rebooted" in str(error)
    assert "/dev/vda" in str(error).partition("the console:")[2]


def test_a_kernel_that_panics_before_it_has_a_console_is_heard(site, run, guest):
    """Without its initrd it has no driver for hvc0: only the early console can speak."""
    empty = guest / "initrd.img"
    empty.touch(mode=0o644)
    error = run(site.fails(replace(SPEC, initrd=empty), dial=True))
    assert "VFS: Unable to mount root fs" in str(error)


def test_a_guest_that_never_answers(site, run):
    error = run(site.fails(replace(SPEC, paused=True), budgets=replace(BUDGETS, dial=0.5 * SCALE), dial=True))
    assert isinstance(error, VmFailed)
    assert f"no answer in {0.5 * SCALE:g} s; QEMU lives, status prelaunch" in str(error)


def test_a_monitor_that_never_answers(site, run):
    """A program that stays silent in QEMU's place."""
    silent = site.run / "silent"
    silent.write_text("#!/bin/sh\nexec sleep 1000\n")
    site.run.chmod(0o755)
    silent.chmod(0o755)
    error = run(site.fails(replace(SPEC, qemu=silent), budgets=replace(BUDGETS, qmp=0.5)))
    assert "no greeting in 0.5 s; QEMU lives" in str(error)
    silent.unlink()


def test_a_program_that_cannot_be_executed_in_qemus_place(site, run):
    broken = site.run / "broken"
    broken.write_text("no program\n")
    site.run.chmod(0o755)
    broken.chmod(0o755)
    error = run(site.fails(replace(SPEC, qemu=broken)))
    assert "QEMU exited with status 127" in str(error)
    assert str(broken) in str(error)
    broken.unlink()
