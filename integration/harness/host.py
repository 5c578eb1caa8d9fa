"""A machine of one's own, as far as a shim can see: private mounts, network, /run and /dev/shm.

A mount or link that appears in here was made by what runs in here; no other test, session or daemon of the machine is in
view. That makes the leak check exact. Templates alone are all hosts' of a session (`harness.shelf`). Programs enter with
``nsenter``; files outside ``/run`` and ``/dev/shm`` are the real ones.
"""

import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

from integration.harness import process
from integration.harness.shelf import shelf


class Propagation(StrEnum):
    """How mounts spread: systemd makes / shared; a bare machine or container often has it private."""

    SHARED = "shared"
    PRIVATE = "private"


#: Kept from our environment; everything else (proxies, locale, tokens) stays out of the programs under test.
PASSED_ON: Final = ("HOME", "LANG", "TMPDIR", "KATA_CONF_FILE")

SYSTEM_PATH: Final = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")

_HOLDER: Final = """
set -e
mount --make-r"$1" /
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mkdir -m 755 /run/netns
mount -t tmpfs -o mode=755 tmpfs /run/netns
mkdir -p /run/vc/vm
mkdir -m 700 /run/vc/vm/template
mount --bind "$2" /run/vc/vm/template
ip link set lo up
echo ready
exec cat
"""


class Host:
    """The namespaces, held by one process that ends with us (its stdin is our pipe)."""

    def __init__(self, bin_dirs: Sequence[Path] = (), *, propagation: Propagation = Propagation.SHARED) -> None:
        #: Short, because socket paths below it must stay under 106 bytes.
        self.root = Path(tempfile.mkdtemp(prefix="kt-", dir="/tmp"))
        self.run_dir = self.root / "k"
        self.env: dict[str, str] = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        self.env["PATH"] = ":".join([*map(str, bin_dirs), *SYSTEM_PATH])
        self.env["KATA_SHIMD_RUN_DIR"] = str(self.run_dir)
        holder, templates = shelf()
        enter = [
            "nsenter",
            f"--mount=/proc/{holder}/ns/mnt",
            "--",
            "unshare",
            "--mount",
            "--net",
            "--propagation=private",
        ]
        self._holder = process.spawn(
            [*enter, "sh", "-c", _HOLDER, "holder", propagation.value, str(templates)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.env,
        )
        self._await_ready()

    @property
    def pid(self) -> int:
        """The holder's pid: /proc/PID/root, /proc/PID/mountinfo and /proc/PID/net show the inside."""
        return self._holder.pid

    @property
    def inside(self) -> Path:
        """The root directory as programs in here see it."""
        return Path("/proc", str(self.pid), "root")

    def argv(self, words: Sequence[str | Path]) -> list[str]:
        """What to execute so that ``words`` runs in here; the pid is the program's own."""
        proc = f"/proc/{self.pid}/ns"
        return ["nsenter", f"--mount={proc}/mnt", f"--net={proc}/net", "--", *map(str, words)]

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
        return subprocess.run(
            self.argv(words), env=self.env | dict(env or {}), capture_output=True, timeout=within, check=False, **source
        )

    def spawn(
        self,
        words: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        stdin: int | IO[Any] = subprocess.DEVNULL,
        stdout: int | IO[Any] = subprocess.DEVNULL,
        stderr: int | IO[Any] = subprocess.DEVNULL,
    ) -> "subprocess.Popen[bytes]":
        """Start in here; the caller ends it with `process.finish`."""
        return process.spawn(
            self.argv(words), env=self.env | dict(env or {}), stdin=stdin, stdout=stdout, stderr=stderr
        )

    def close(self) -> None:
        """Let the namespaces go. What a test left in the directory is removed with it, never across a mount. A maker of templates
        outlives pods, but not us.
        """
        for found in process.descendants():
            if " template build --order " in (command := found.command()) and f" {self.run_dir}" in command:
                found.kill()
        process.finish(self._holder)
        subprocess.run(["rm", "-rf", "--one-file-system", str(self.root)], check=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _await_ready(self) -> None:
        assert self._holder.stdout is not None and self._holder.stderr is not None
        if self._holder.stdout.readline() != b"ready\n":
            cause = self._holder.stderr.read().decode(errors="replace").strip()
            self.close()
            raise RuntimeError(f"private namespaces: {cause}; are we root, with unshare, mount and ip installed?")
