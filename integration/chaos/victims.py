"""What can die, and how it is made to: by SIGKILL where it is a process of the host."""

import ctypes
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Final

from integration.chaos.stage import Stage
from integration.harness import process
from integration.harness.ctr import PATIENCE
from integration.harness.waiting import eventually

#: How long containerd is away: no event ends it, for nothing may happen then.
AWAY_SECONDS: Final = 150.0
_PIDFD_GETFD: Final = 438


class Victim(StrEnum):
    """Who dies. CONTAINERD is back at once, AWAY after minutes. LAUNCHER is `containerd-shim-kata-v2 start`, DELETE the undo that
    Delete and `delete` run."""

    DAEMON = "daemon"
    QEMU = "QEMU"
    VIRTIOFSD = "virtiofsd"
    AGENT = "agent"
    CONTAINERD = "containerd"
    AWAY = "containerd, away"
    LAUNCHER = "launcher (start)"
    DELETE = "delete (undo)"


def daemon(stage: Stage, sandbox_id: str) -> None:
    _kill_recorded(stage, sandbox_id, "daemon")


def qemu(stage: Stage, sandbox_id: str) -> None:
    _kill_recorded(stage, sandbox_id, "qemu")


def virtiofsd(stage: Stage, sandbox_id: str) -> None:
    _kill_recorded(stage, sandbox_id, "virtiofsd")


def _kill_recorded(stage: Stage, sandbox_id: str, what: str) -> None:
    """As soon as it is in the ledger."""
    _recorded(stage, sandbox_id, what).signal(signal.SIGKILL)


def _recorded(stage: Stage, sandbox_id: str, what: str) -> process.Process:
    def find() -> process.Process | None:
        with suppress(Exception):
            return stage.pod(sandbox_id).process(what)
        return None

    found = eventually(f"{what} of {sandbox_id}", find, within=PATIENCE)
    assert found is not None
    return found


def agent(stage: Stage, sandbox_id: str) -> None:
    """The connection to the agent ends while the VM lives, which is all the host sees of an agent that was killed.

    Ours is PID 1 of its guest and cannot be killed from inside, so the daemon's end of the connection is shut down.
    """
    pod = stage.pod(sandbox_id)
    sock = _connection(pod.process("daemon").pid, str(pod.directory / "agent.sock"))
    with sock:
        sock.shutdown(socket.SHUT_RDWR)


def containerd(stage: Stage, _sandbox_id: str) -> None:
    """It comes back at once, as systemd would have it."""
    stage.containerd.kill()
    stage.containerd.start()


def away(stage: Stage, _sandbox_id: str) -> None:
    """It is stopped, as for an upgrade that goes wrong, and is away for longer than any call may take."""
    stage.containerd.stop()
    time.sleep(AWAY_SECONDS)
    stage.containerd.start()


def launcher(stage: Stage, sandbox_id: str) -> None:
    """As soon as the daemon that it starts is in the ledger, and long before that is ready."""
    _recorded(stage, sandbox_id, "daemon")
    found = stage.starting(sandbox_id)
    if found is None:
        raise LookupError(f"no start of {sandbox_id} is under way")
    found.signal(signal.SIGKILL)


KILL: Final[Mapping[Victim, Callable[[Stage, str], None]]] = {
    Victim.DAEMON: daemon,
    Victim.QEMU: qemu,
    Victim.VIRTIOFSD: virtiofsd,
    Victim.AGENT: agent,
    Victim.CONTAINERD: containerd,
    Victim.AWAY: away,
    Victim.LAUNCHER: launcher,
}


def _connection(pid: int, path: str) -> socket.socket:
    """A copy of the descriptor by which ``pid`` is connected to the listening socket ``path``.

    :raises LookupError: it is not
    """
    pidfd = os.pidfd_open(pid)
    try:
        for entry in Path("/proc", str(pid), "fd").iterdir():
            if entry.readlink().name.startswith("socket:") and (found := _copy(pidfd, int(entry.name), path)):
                return found
    finally:
        os.close(pidfd)
    raise LookupError(f"process {pid} has no connection to {path}")


def _copy(pidfd: int, fd: int, path: str) -> socket.socket | None:
    got = ctypes.CDLL(None, use_errno=True).syscall(_PIDFD_GETFD, pidfd, fd, 0)
    if got < 0:
        raise OSError(ctypes.get_errno(), "pidfd_getfd")
    sock = socket.socket(fileno=got)
    with suppress(OSError):
        if sock.getpeername() == path:
            return sock
    sock.close()
    return None
