"""The QEMU process: checked beforehand, spawned without privileges, its end told in a sentence.

It runs as a user of its own without capabilities, under its seccomp sandbox, in the pod's network namespace. All it gets are
descriptors and three files to read.
"""

import os
import signal
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from kata_shimd.errors import HostFailed
from kata_shimd.host.process import UNKNOWN_STATUS, Gate, Process, spawn
from kata_shimd.ledger import BOOT, Ledger
from kata_shimd.vm import accel, user
from kata_shimd.vm.accel import Accelerator
from kata_shimd.vm.argv import argv
from kata_shimd.vm.spec import VmSpec, Wires

WHAT: Final = "qemu"
STDERR: Final = "qemu.stderr"
UIDS: Final = "uids"

#: QMP's ShutdownCause, for people.
_REASONS: Final = {
    "guest-shutdown": "the guest powered itself off",
    "guest-reset": "the guest rebooted, as it does one second after its kernel panicked",
    "guest-panic": "the guest's kernel panicked",
    "host-qmp-quit": "QEMU was asked to quit",
    "host-signal": "QEMU was asked to end by a signal",
    "host-error": "QEMU ran into an error of the host",
    "host-ui": "QEMU was closed",
}


def check_files(spec: VmSpec) -> None:
    """Find what is missing before QEMU does, and say what to do.

    :raises HostFailed: QEMU, the kernel, the initrd or the image is not there or not what it should be
    """
    if not (spec.qemu.is_file() and os.access(spec.qemu, os.X_OK)):
        raise HostFailed("start QEMU", str(spec.qemu), "not found or not executable", hint="install QEMU, or set path")
    for what, path in _guest_files(spec).items():
        try:
            with path.open("rb"):
                pass
        except OSError as error:
            hint = "build the guest with `kata-shimd guest build`, or configure kernel and image"
            raise HostFailed(f"open guest {what}", str(path), error.strerror or "", hint=hint) from error


def _guest_files(spec: VmSpec) -> dict[str, Path]:
    files = {"kernel": spec.kernel, "image": spec.image}
    return {**files, "initrd": spec.initrd} if spec.initrd else files


def start(spec: VmSpec, wires: Wires, ledger: Ledger, gate: Gate, *, needs: Iterable[int]) -> Process:
    """Spawn QEMU as a user of the pod's own. ``gate`` says where: namespace, cgroups, OOM score.

    :raises HostFailed: no user, no launcher, or KVM that QEMU may not use
    """
    pod_dir = ledger.pod_dir
    groups = accel.device_groups() if spec.accelerator is Accelerator.KVM else ()
    uid, claim = user.claim(ledger, pod_dir.parent.parent / UIDS, pod_dir.name)
    return spawn(
        ledger,
        replace(gate, uid=uid, gid=uid, groups=groups, no_new_privs=True, drop_caps=True),
        argv(spec, wires),
        what=WHAT,
        stderr=pod_dir / STDERR,
        pass_fds=(*wires.fds(), *(fd for nic in spec.nics for fd in (*nic.fds, *nic.vhost_fds))),
        scope=BOOT,
        needs=(claim, *needs),
    )


def closed_files(spec: VmSpec) -> str:
    """A hint naming the guest files that QEMU, being nobody, may not read; empty when it may read all."""
    closed = [str(path) for path in _guest_files(spec).values() if not readable_by_all(path)]
    return f"QEMU runs without privileges and may not read {', '.join(closed)}" if closed else ""


def readable_by_all(path: Path) -> bool:
    """Whether the mode bits let everybody read ``path``, and pass through every directory above it."""
    try:
        real = path.resolve()
        above = all(parent.stat().st_mode & stat.S_IXOTH for parent in real.parents)
        return above and bool(real.stat().st_mode & stat.S_IROTH)
    except OSError:
        return False


@dataclass(slots=True)
class LastWords:
    """What QMP said about the end, and what we did ourselves."""

    reason: str = ""
    panicked: bool = False
    #: Why we killed it; empty when we did not.
    killed_for: str = ""

    def take(self, event: str, data: Mapping[str, Any]) -> None:
        """Take a QMP event."""
        if event == "SHUTDOWN":
            self.reason = str(data.get("reason", ""))
        elif event == "GUEST_PANICKED":
            self.panicked = True


def cause(status: int, words: LastWords, stderr: str) -> str:
    """How QEMU ended, in a sentence; the most telling reason wins.

    :param status: as `Process.wait` returns it
    """
    if words.killed_for:
        return words.killed_for
    if words.panicked:
        return _REASONS["guest-panic"]
    if words.reason in _REASONS:
        return _REASONS[words.reason]
    return _by_status(status, stderr)


def _by_status(status: int, stderr: str) -> str:
    if status < 0:
        return f"QEMU was killed by {_signal_name(-status)}"
    ended = "QEMU ended" if status in (0, UNKNOWN_STATUS) else f"QEMU exited with status {status}"
    last = stderr.strip().rpartition("\n")[2]
    return f"{ended}: {last}" if last else ended


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
