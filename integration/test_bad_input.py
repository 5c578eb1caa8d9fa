"""What a client sees when something that a pod needs is missing, broken, full or silent.

Each case: the client's error has step, object, cause and, where something can be done, a hint; nothing is left (the leak check
of every test looks); and the same container runs once the thing is mended.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from integration.harness.containerd import Containerd
from integration.harness.ctr import Ctr, Done
from integration.harness.host import Host
from integration.harness.launcher import Launcher
from integration.harness.spec import Spec

pytestmark = pytest.mark.vm

GUEST: Final = Path("/var/lib/kata-shimd/guest/current")
#: Content of files that should be programs, kernels or images.
NONSENSE: Final = b"neither a program nor a kernel\n" * 4096
PAGE: Final = 4096
#: More pages than a pod writes below its run directory; the bound ends a loop that a bug would make endless.
MANY: Final = 64


# --- what a configuration names --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Case:
    """A configuration that cannot work, and what the client must be told: step, object, cause, hint, in this order.

    ``{tmp}`` in values stands for a directory with ``plain`` (not executable), ``broken`` (executable, no program), ``mute`` (a
    program that says nothing), and ``guest``: the built guest, with the files in ``guest`` replaced (None: removed).
    Seconds are multiplied by the accelerator's factor.
    """

    name: str
    said: tuple[str, ...]
    qemu: dict[str, Any] = field(default_factory=dict)
    guest: dict[str, Path | bytes | None] = field(default_factory=dict)
    mode: int = 0o644
    #: Deadlines of the agent's and of the monitor's first word: short only where one has to pass.
    dial: int = 30
    qmp: int = 10


WHY: Final = "; see kata-shimd why "
RUN_DIR: Final = "; set KATA_SHIMD_RUN_DIR"
BUILD: Final = "; build the guest with `kata-shimd guest build`, or configure kernel and image"
CASES: Final = (
    Case(
        "no-qemu",
        ("start QEMU: ", "{tmp}/none: ", "not found or not executable", "; install QEMU, or set path"),
        {"path": "{tmp}/none"},
    ),
    Case(
        "qemu-not-executable",
        ("start QEMU: ", "{tmp}/plain: ", "not found or not executable", "; install QEMU, or set path"),
        {"path": "{tmp}/plain"},
    ),
    Case(
        "qemu-that-is-no-program",
        ("start QEMU: ", "{tmp}/broken: ", "QEMU exited with status 127: ", "Exec format error", WHY),
        {"path": "{tmp}/broken"},
    ),
    Case(
        "qemu-that-refuses-its-options",
        ("start QEMU: ", "/qemu-system-x86_64: ", "QEMU exited with status 1: ", "no-such-option", WHY),
        {"machine_accelerators": "no-such-option=on"},
    ),
    Case(
        "no-virtiofsd",
        ("start virtiofsd: ", "{tmp}/none: ", "not found or not executable", "; install virtiofsd"),
        {"virtio_fs_daemon": "{tmp}/none"},
    ),
    Case(
        "virtiofsd-not-executable",
        ("start virtiofsd: ", "{tmp}/plain: ", "not found or not executable", "; install virtiofsd"),
        {"virtio_fs_daemon": "{tmp}/plain"},
    ),
    *(
        Case(
            f"no-{what}",
            (f"open guest {what}: ", "{tmp}/guest/" + file, ": No such file or directory", BUILD),
            guest={file: None},
        )
        for what, file in (("kernel", "vmlinuz"), ("initrd", "initrd.img"), ("image", "rootfs.img"))
    ),
    Case("kernel-that-is-none", ("start QEMU: ", "/qemu-system-x86_64: ", "QEMU ", WHY), guest={"vmlinuz": NONSENSE}),
    Case(
        "kernel-that-qemu-may-not-read",
        ("start QEMU: ", "Permission denied", "; QEMU runs without privileges and may not read {tmp}/guest/vmlinuz"),
        guest={"vmlinuz": NONSENSE},
        mode=0o600,
    ),
    Case(
        "image-that-is-none",
        ("dial agent: ", "/agent.sock: ", "the guest rebooted", "the console: ", "/dev/vda", WHY),
        guest={"rootfs.img": NONSENSE},
    ),
    Case(
        "guest-that-panics",
        ("dial agent: ", "/agent.sock: ", "the guest rebooted", "the console: ", "Kernel panic", WHY),
        {"kernel_params": "rdinit=/no/such/init"},
    ),
    Case(
        "guest-that-never-answers",
        ("dial agent: ", "/agent.sock: ", "no answer in ", "QEMU lives, status running", "boot: check ", WHY),
        guest={"initrd.img": GUEST / "trivial.img"},
        dial=2,
    ),
    Case(
        "qemu-that-never-answers",
        ("start QEMU: ", "{tmp}/mute: ", "no greeting in ", "QEMU lives", WHY),
        {"path": "{tmp}/mute"},
        qmp=1,
    ),
    Case(
        "a-value-of-the-wrong-kind",
        ("load configuration: ", "configuration.toml:", "hypervisor.qemu.default_memory: must be an integer", "; see "),
        {"default_memory": "much"},
    ),
)


@pytest.fixture
def configure(tmp_path: Path) -> Callable[[Case], Path]:
    """Lay out what a case needs, readable by QEMU's user; its configuration file."""

    def lay_out(case: Case) -> Path:
        _file(tmp_path / "plain", NONSENSE, 0o644)
        _file(tmp_path / "broken", NONSENSE, 0o755)
        _file(tmp_path / "mute", b"#!/bin/sh\nexec sleep 1000\n", 0o755)
        _guest(tmp_path / "guest", case)
        tables = {
            "hypervisor.qemu": case.qemu,
            "agent.kata": {"dial_timeout": case.dial},
            "shimd": {"guest_dir": "{tmp}/guest"},
            "shimd.timeouts": {"qmp": case.qmp},
        }
        lines = (f"[{title}]\n" + "".join(map(_line, keys.items())) for title, keys in tables.items())
        file = tmp_path / "configuration.toml"
        file.write_text("".join(lines).replace("{tmp}", str(tmp_path)))
        return file

    for directory in (tmp_path, *tmp_path.parents[:2]):
        directory.chmod(0o755)
    return lay_out


def _line(item: tuple[str, Any]) -> str:
    """JSON's texts and numbers are TOML's too."""
    return f"{item[0]} = {json.dumps(item[1])}\n"


def _file(path: Path, content: bytes, mode: int) -> None:
    path.write_bytes(content)
    path.chmod(mode)


def _guest(directory: Path, case: Case) -> None:
    directory.mkdir()
    for name in ("vmlinuz", "initrd.img", "rootfs.img"):
        replaced = case.guest.get(name, GUEST / name)
        if isinstance(replaced, Path):
            (directory / name).symlink_to(replaced)
        elif replaced is not None:
            _file(directory / name, replaced, case.mode)


def says(done: Done, *words: str) -> None:
    """The client has failed, and its error has these words in this order."""
    assert done.code != 0, done
    rest = done.err
    for word in words:
        assert word in rest, f"{word!r} is not, or not there, in: {done.err}"
        rest = rest.partition(word)[2]


def works(ctr: Ctr, name: str, **how: Any) -> None:
    """The retry, with nothing wrong any more."""
    assert ctr.run(name, "echo", "again", **how).ok().out == "again"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_configuration_that_cannot_work(
    ctr: Ctr, name: str, tmp_path: Path, configure: Callable[[Case], Path], case: Case
) -> None:
    done = ctr.run(name, "true", config=configure(case))
    says(done, *(word.replace("{tmp}", str(tmp_path)) for word in case.said))
    works(ctr, name)


# --- what a bundle has -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (None, "read config.json: {bundle}/config.json: No such file or directory"),
        ("{", "read bundle: {bundle}/config.json: EOF while parsing"),
        ("[]", "{bundle}/config.json: it is no object"),
    ],
    ids=["missing", "broken", "no-object"],
)
def test_a_config_json_that_is_none(ctr: Ctr, name: str, rootfs_dir: Path, spec: str | None, said: str) -> None:
    """containerd always writes one, so the launcher is called as containerd would."""
    launcher = Launcher(ctr.containerd, ctr.namespace)
    bundle = launcher.bundle(name, spec)
    started = launcher.start(name, bundle)
    assert (started.returncode, started.stdout) == (1, b"")
    assert said.replace("{bundle}", str(bundle)) in started.stderr.decode()
    assert launcher.delete(name, bundle).returncode == 0
    works(ctr, name)


def test_a_config_json_without_a_process(ctr: Ctr, name: str, rootfs_dir: Path, tmp_path: Path) -> None:
    spec = Spec.default(ctr, rootfs_dir, "true")
    del spec.content["process"]
    says(spec.run(ctr, name, tmp_path), "read config.json: ", f"/{name}: ", "it has no process")
    works(ctr, name)


def test_no_rootfs(ctr: Ctr, name: str, rootfs_dir: Path, tmp_path: Path) -> None:
    missing = tmp_path / "none"
    said = (
        "share rootfs: ",
        f"{missing}: ",
        "no such directory",
        "; give the task rootfs mounts, or an existing root.path",
    )
    says(ctr.run(name, "true", rootfs=missing), *said)
    works(ctr, name, rootfs=rootfs_dir)


# --- where a pod keeps its state -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Disk:
    """A file system of its own, inside the private host, and what pods have left on it."""

    host: Host
    path: Path

    @property
    def inside(self) -> Path:
        """As seen from out here."""
        return self.host.inside / self.path.relative_to("/")

    def mount(self, options: str) -> None:
        done = self.host.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", self.path])
        assert done.returncode == 0, done.stderr

    def unmount(self) -> None:
        done = self.host.run(["umount", self.path])
        assert done.returncode == 0, done.stderr

    def left(self) -> list[str]:
        """Files and directories of pods; journals are kept on purpose."""
        places = (self.inside / "k" / name for name in ("pods", "locks", "uids"))
        return [str(entry) for place in places if place.is_dir() for entry in place.iterdir()]


@pytest.fixture
def disk(host: Host) -> Disk:
    path = host.root / "disk"
    path.mkdir(exist_ok=True)
    return Disk(host, path)


@pytest.fixture
def other(ctr: Ctr, disk: Disk) -> Iterator[Ctr]:
    """A client of a containerd whose pods keep their state on that disk."""
    containerd = Containerd(ctr.containerd.host)
    containerd.start(KATA_SHIMD_RUN_DIR=str(disk.path / "k"))
    try:
        yield Ctr(containerd, ctr.namespace, ctr.runtime)
    finally:
        containerd.stop()


def test_a_state_directory_that_cannot_be_written(other: Ctr, disk: Disk, name: str, rootfs_dir: Path) -> None:
    disk.mount("ro")
    try:
        says(
            other.run(name, "true", rootfs=rootfs_dir),
            f"make directory: {disk.path}/k: ",
            "Read-only file system",
            RUN_DIR,
        )
    finally:
        disk.unmount()
    works(other, name, rootfs=rootfs_dir)
    assert disk.left() == []


def test_a_state_directory_that_is_a_file(other: Ctr, disk: Disk, name: str, rootfs_dir: Path) -> None:
    disk.mount("size=1m")
    try:
        (disk.inside / "k").touch(0o600)
        says(other.run(name, "true", rootfs=rootfs_dir), f"make directory: {disk.path}/k: ", "File exists", RUN_DIR)
        (disk.inside / "k").unlink()
        works(other, name, rootfs=rootfs_dir)
        assert disk.left() == []
    finally:
        disk.unmount()


def test_a_full_disk(other: Ctr, disk: Disk, name: str, rootfs_dir: Path) -> None:
    """With every number of free pages, until they are enough: an error that says so, and nothing left, not even on this disk."""
    for free in range(MANY):
        disk.mount(f"size={PAGE * (free + 1)}")
        try:
            (disk.inside / "ballast").write_bytes(bytes(PAGE))
            done = other.run(f"{name}-{free}", "echo", "enough", rootfs=rootfs_dir)
            assert disk.left() == [], f"{free} pages free"
        finally:
            disk.unmount()
        if done.code == 0:
            break
        says(done, "No space left on device")
    assert 0 < free < MANY - 1
    assert done.out == "enough"
