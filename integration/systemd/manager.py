"""A real systemd, as the first process of a private machine.

It has namespaces of its own for processes, mounts, network and control groups, its own /run, /tmp and /var/tmp (its tmpfiles would
empty the host's), and knows no units but those that are wanted here: none of the host's services is started, no kernel setting of
the host's is touched.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

from integration.harness import process
from integration.harness.host import SYSTEM_PATH
from integration.harness.scale import SCALE
from integration.harness.waiting import eventually

PROGRAM: Final = Path("/lib/systemd/systemd")
#: Of the distribution's units, what every service needs, and the journal.
UNITS: Final = (
    "basic.target",
    "sysinit.target",
    "shutdown.target",
    "umount.target",
    "sockets.target",
    "paths.target",
    "timers.target",
    "slices.target",
    "local-fs.target",
    "network.target",
    "systemd-journald.service",
    "systemd-journald.socket",
    "systemd-journald-dev-log.socket",
)
#: Where this machine's own units are, and where pods' drop-ins come.
RUNTIME: Final = Path("/run/systemd/system")
#: Below it are sockets, so it is short; and it is not below what the machine has for itself.
HOME: Final = Path(os.environ.get("KATA_SHIMD_CACHE", "/var/cache/kata-shimd"))

_BOOT: Final = """
set -e
mount --make-rprivate /
for path in /run /tmp /var/tmp /dev/shm; do mount -t tmpfs -o mode=755 tmpfs $path; done
chmod 1777 /tmp /var/tmp
mount -t proc proc /proc
if [ -e /etc/machine-id ]; then
    mount --bind /etc/machine-id /etc/machine-id
    mount -o remount,bind,ro /etc/machine-id
fi
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
else
    umount -R /sys/fs/cgroup
    mount -t tmpfs tmpfs /sys/fs/cgroup
    mkdir /sys/fs/cgroup/systemd
    mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd
fi
mkdir -p /run/systemd/system /run/netns
ip link set lo up
exec env -i container=test PATH="$PATH" SYSTEMD_UNIT_PATH="$1:/run/systemd/system:/run/systemd/transient" \\
    SYSTEMD_GENERATOR_PATH= SYSTEMD_LOG_TARGET=console \\
    "$2" --system --unit=basic.target --show-status=no --log-level=info
"""


class Systemd:
    """Runs from the making to `close`."""

    def __init__(self, bin_dirs: Sequence[Path] = ()) -> None:
        HOME.mkdir(parents=True, exist_ok=True)
        self.root = Path(tempfile.mkdtemp(prefix="s", dir=HOME))
        self.run_dir = self.root / "k"
        self.log = self.root / "log"
        self.env = {"PATH": ":".join([*map(str, bin_dirs), *SYSTEM_PATH]), "KATA_SHIMD_RUN_DIR": str(self.run_dir)}
        units = self.root / "units"
        units.mkdir()
        for name in UNITS:
            (units / name).symlink_to(PROGRAM.parent / "system" / name)
        self._before = _others()
        self._cgroups = _own_cgroups()
        # It must not outlive us, whatever we die of.
        words = [
            "setpriv",
            "--pdeathsig=KILL",
            "unshare",
            "--pid",
            "--fork",
            "--mount",
            "--net",
            "--cgroup",
            "--kill-child",
            "--propagation=private",
        ]
        boot = ["sh", "-c", _BOOT, "boot", str(units), str(PROGRAM)]
        enter = [f"echo $$ > {group}/cgroup.procs" for group in self._cgroups]
        with self.log.open("wb") as log:
            argv = ["sh", "-c", "; ".join([*enter, 'exec "$@"']), "enter", *words, *boot]
            self._outer = process.spawn(argv, env=self.env, stdout=log, stderr=log)
        self.pid = self._first_process()
        eventually("systemd's first target", self._is_up, within=20 * SCALE)
        self.systemctl(
            "start", "systemd-journald.socket", "systemd-journald-dev-log.socket", "systemd-journald.service"
        )

    @property
    def inside(self) -> Path:
        """The root directory as it is in there."""
        return Path("/proc", str(self.pid), "root")

    def argv(self, words: Sequence[str | Path]) -> list[str]:
        """What to execute so that ``words`` runs in there."""
        return ["nsenter", f"--target={self.pid}", "--mount", "--pid", "--net", "--cgroup", "--", *map(str, words)]

    def run(
        self,
        words: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        input: bytes | None = None,
        within: float = 60.0,
    ) -> "subprocess.CompletedProcess[bytes]":
        """Run to the end, output collected. The exit status is the caller's to judge."""
        source: dict[str, Any] = {"stdin": subprocess.DEVNULL} if input is None else {"input": input}
        env = self.env | dict(env or {})
        return subprocess.run(self.argv(words), env=env, capture_output=True, timeout=within, check=False, **source)

    def spawn(
        self,
        words: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        stdin: int | IO[Any] = subprocess.DEVNULL,
        stdout: int | IO[Any] = subprocess.DEVNULL,
        stderr: int | IO[Any] = subprocess.DEVNULL,
    ) -> "subprocess.Popen[bytes]":
        """Start in there; the caller ends it with `process.finish`."""
        env = self.env | dict(env or {})
        return process.spawn(self.argv(words), env=env, stdin=stdin, stdout=stdout, stderr=stderr)

    def systemctl(self, *words: str) -> str:
        """What it answers; a failure fails the test."""
        done = self.run(["systemctl", *words])
        assert done.returncode == 0, (words, done.stderr.decode(), self.journal())
        return done.stdout.decode().strip()

    def show(self, unit: str, name: str) -> str:
        return self.systemctl("show", "--property", name, "--value", unit)

    def journal(self, *words: str) -> str:
        return self.run(["journalctl", "--no-pager", *words]).stdout.decode()

    def units(self) -> list[str]:
        """The pods' units that are loaded."""
        lines = self.systemctl("list-units", "--all", "--plain", "--no-legend", "kata-pod@*").splitlines()
        return [line.split()[0] for line in lines]

    def drop_ins(self) -> list[str]:
        return sorted(path.name for path in (self.inside / str(RUNTIME)[1:]).glob("kata-pod@?*.service.d"))

    def unit(self, name: str, text: str) -> None:
        """Lay down a unit or a drop-in of this machine's, and have it read."""
        path = self.inside / str(RUNTIME)[1:] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        self.systemctl("daemon-reload")

    def kill(self, pid: int, signal: str = "KILL") -> None:
        """``pid`` as it is in there."""
        done = self.run(["sh", "-c", f"kill -s {signal} {pid}"])
        assert done.returncode == 0, done

    @contextmanager
    def tuned(self, *lines: str) -> Iterator[None]:
        """Pods' units with these lines of [Service] instead of the template's, as an administrator would have it."""
        name = "kata-pod@.service.d/90-test.conf"
        self.unit(name, "\n".join(["[Service]", *lines, ""]))
        yield
        (self.inside / str(RUNTIME)[1:] / name).unlink()
        self.systemctl("daemon-reload")

    def close(self) -> None:
        """The first process takes all others along."""
        self._outer.kill()
        process.finish(self._outer)
        for group in self._cgroups:
            eventually(f"{group} is empty", lambda group=group: _is_empty(group), within=10 * SCALE)
            _remove(group)
        for group in _others() - self._before:
            with suppress(OSError):  # somebody is in it, so it is not of what has ended here
                _remove(group)
        shutil.rmtree(self.root)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _first_process(self) -> int:
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children")
        pid = eventually("systemd's process", lambda: self._outer.poll() is not None or children.read_text(), within=10)
        assert isinstance(pid, str), self.log.read_text()
        return int(pid)

    def _is_up(self) -> bool:
        assert self._outer.poll() is None, self.log.read_text()
        return self.run(["systemctl", "is-active", "basic.target"]).stdout == b"active\n"


def _own_cgroups() -> list[Path]:
    """A group of our own in the hierarchy that systemd manages: the root of its namespace."""
    top = Path("/sys/fs/cgroup")
    managed = top if (top / "cgroup.controllers").exists() else top / "systemd"
    return [Path(tempfile.mkdtemp(prefix="kata-test-", dir=managed))]


def _others() -> set[Path]:
    """Groups at the top of the hierarchies that systemd does not manage: in those it makes groups of its units as well, by their
    controllers, and of no namespace of ours.
    """
    top = Path("/sys/fs/cgroup")
    unified = (top / "cgroup.controllers").exists()
    return set() if unified else {group for group in top.glob("*/*") if group.is_dir()}


def _remove(group: Path) -> None:
    for top, _, _ in os.walk(group, topdown=False):
        Path(top).rmdir()


def _is_empty(group: Path) -> bool:
    return not any((Path(top) / "cgroup.procs").read_text() for top, _, _ in os.walk(group))
