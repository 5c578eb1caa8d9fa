"""What is checked before QEMU starts, and the sentence about its end."""

import os
from dataclasses import replace

import pytest

from kata_shimd.errors import HostFailed
from kata_shimd.vm import qemu
from kata_shimd.vm.test_argv import TCG


@pytest.fixture
def spec(tmp_path):
    files = {name: tmp_path / name for name in ("qemu", "kernel", "initrd", "image")}
    for path in files.values():
        path.touch(mode=0o644)
    files["qemu"].chmod(0o755)
    return replace(TCG, **files)


def test_all_there(spec):
    qemu.check_files(spec)


@pytest.mark.parametrize("what", ["kernel", "initrd", "image"])
def test_a_missing_guest_file_is_named_with_a_hint(spec, what):
    getattr(spec, what).unlink()
    with pytest.raises(HostFailed, match=rf"open guest {what}: .*/{what}: No such file.*guest build"):
        qemu.check_files(spec)


def test_qemu_that_is_no_program(spec):
    spec.qemu.chmod(0o644)
    with pytest.raises(HostFailed, match=r"start QEMU: .*/qemu: not found or not executable; install QEMU"):
        qemu.check_files(spec)


def test_a_directory_is_no_kernel(spec):
    with pytest.raises(HostFailed, match="Is a directory"):
        qemu.check_files(replace(spec, kernel=spec.kernel.parent))


@pytest.mark.parametrize(
    ("mode", "above", "readable"), [(0o644, 0o755, True), (0o640, 0o755, False), (0o644, 0o700, False)]
)
def test_readable_by_all(tmp_path, mode, above, readable):
    # pytest's own directories are closed to others.
    for parent in tmp_path.parents:
        if parent.stat().st_uid == os.getuid() and not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o011)
    tmp_path.chmod(0o755)
    directory = tmp_path / "guest"
    directory.mkdir()
    (directory / "kernel").touch()
    (directory / "kernel").chmod(mode)
    directory.chmod(above)
    assert qemu.readable_by_all(directory / "kernel") is readable


def test_a_closed_file_is_hinted_at(spec):
    spec.kernel.chmod(0o600)
    assert str(spec.kernel) in qemu.closed_files(spec)


def words(*events, killed_for=""):
    said = qemu.LastWords(killed_for=killed_for)
    for event, data in events:
        said.take(event, data)
    return said


SHUTDOWN = ("SHUTDOWN", {"guest": True, "reason": "guest-reset"})
PANIC = ("GUEST_PANICKED", {"action": "pause"})


@pytest.mark.parametrize(
    ("status", "said", "stderr", "sentence"),
    [
        (-9, words(), "", "QEMU was killed by SIGKILL"),
        (-64, words(), "", "QEMU was killed by SIGRTMAX"),
        (-50, words(), "", "QEMU was killed by signal 50"),
        (1, words(), "warning\nqemu: bad option\n", "QEMU exited with status 1: qemu: bad option"),
        (1, words(), "", "QEMU exited with status 1"),
        (0, words(), "", "QEMU ended"),
        (0, words(SHUTDOWN), "noise", "the guest rebooted, as it does one second after its kernel panicked"),
        (0, words(SHUTDOWN, PANIC), "", "the guest's kernel panicked"),
        (0, words(("SHUTDOWN", {"reason": "host-qmp-quit"})), "", "QEMU was asked to quit"),
        (-6, words(("SHUTDOWN", {"reason": "of a later version"})), "", "QEMU was killed by SIGABRT"),
        (0, words(("SHUTDOWN", {"reason": ["nonsense"]})), "", "QEMU ended"),
        (-9, words(SHUTDOWN, killed_for="virtiofsd ended"), "", "virtiofsd ended"),
    ],
)
def test_the_most_telling_reason_wins(status, said, stderr, sentence):
    assert qemu.cause(status, said, stderr) == sentence
