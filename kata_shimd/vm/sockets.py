"""Unix sockets of the pod: bound by us, 0600, and handed on as descriptors, so that nobody waits for a path to appear.

They need no record of their own in the ledger: they lie in the pod's directory, which is removed last and whole.
"""

import socket
from pathlib import Path
from typing import Final

from kata_shimd.errors import HostFailed

MONITOR: Final = "qmp.sock"
DEBUG_MONITOR: Final = "qmp-debug.sock"
EXTRA_MONITOR: Final = "extra-monitor.sock"
AGENT: Final = "agent.sock"
CONSOLE: Final = "console.sock"
VIRTIOFS: Final = "virtiofs.sock"
_ALL: Final = (MONITOR, DEBUG_MONITOR, EXTRA_MONITOR, AGENT, CONSOLE, VIRTIOFS)

_BACKLOG: Final = 8


def listen(path: Path) -> socket.socket:
    """A listening stream socket at ``path``.

    :raises HostFailed: the path is taken, too long, or its directory is missing
    """
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        server.bind(str(path))
        path.chmod(0o600)
        server.listen(_BACKLOG)
    except OSError as error:
        server.close()
        raise HostFailed("bind socket", str(path), error.strerror or str(error)) from error
    return server


def clear(pod_dir: Path) -> None:
    """Make room for the sockets of another boot; those of a machine that was never there."""
    for name in _ALL:
        (pod_dir / name).unlink(missing_ok=True)


def connect(path: Path) -> socket.socket:
    """A connected non-blocking socket. It does not wait: a listening socket's backlog takes it before anybody accepts.

    :raises HostFailed: nobody listens there, or the backlog is full
    """
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.setblocking(False)
    try:
        client.connect(str(path))
    except OSError as error:
        client.close()
        raise HostFailed("connect", str(path), error.strerror or str(error)) from error
    return client
