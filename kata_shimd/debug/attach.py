"""The daemon's side of ``kata-shimd attach``: a socket on which root gets an interpreter inside the live daemon.

The socket is bound with the pod and listens only once it is *on*: from the start by configuration, or after SIGUSR2, which the
command sends. It is served by threads (`session`), so that it answers when the loop does not, and can then say what the loop hangs
in. Must never happen: anybody but root is served, or a session is what keeps the daemon from ending.
"""

import asyncio
import logging
import os
import signal
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_log = logging.getLogger(__name__)

SOCKET: Final = "attach.sock"
_BACKLOG: Final = 4
_UCRED: Final = struct.Struct("3i")


@dataclass(frozen=True, slots=True)
class Daemon:
    """What a session works in: the loop, the group of its statements' tasks, what makes its first names, the journal."""

    loop: asyncio.AbstractEventLoop
    group: asyncio.TaskGroup
    names: Callable[[], Mapping[str, Any]]
    note: Callable[..., None]


class Attach:
    """Owns the listening socket and its threads, which end with the process. ``wanted``: whether SIGUSR2 turns it on."""

    def __init__(self, directory: Path, daemon: Daemon, *, wanted: bool = True) -> None:
        self._daemon = daemon
        # Threads begin with an empty one, and what is logged of a session is to say of which pod.
        self._context = copy_context()
        self._bound = self._asked = self._on = False
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        if wanted:
            # Before there is a path to connect to: who finds that nobody listens there sends the signal. A plain handler, not the
            # loop's: it runs although the loop is blocked in Python.
            signal.signal(signal.SIGUSR2, self.turn_on)
        _bind(self._socket, directory / SOCKET)
        self._bound = True
        if self._asked:
            self.turn_on()

    def turn_on(self, *_signal: object) -> None:
        """Listen. Idempotent, and fit for a signal handler."""
        self._asked = True
        if self._bound and not self._on:
            self._on = True
            self._socket.listen(_BACKLOG)
            self._in_thread("attach", self._serve)

    def _in_thread(self, name: str, target: Callable[[], None]) -> None:
        threading.Thread(target=self._context.copy().run, args=(target,), name=name, daemon=True).start()

    def _serve(self) -> None:
        from kata_shimd.debug.session import Session  # an interpreter costs memory; most pods never need one

        while (connection := self._accept()) is not None:
            pid, uid, _gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
            if uid not in (0, os.geteuid()):
                _log.warning("attach: refused process %d of uid %d", pid, uid)
                connection.close()
                continue
            session = Session(connection, pid, uid, self._daemon)
            self._in_thread(f"attached {pid}", session.serve)

    def _accept(self) -> socket.socket | None:
        try:
            return self._socket.accept()[0]
        except OSError:
            return None

    def close(self) -> None:
        """Take no more sessions; those that are open go on."""
        with suppress(OSError):  # it may not listen yet
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def _bind(sock: socket.socket, path: Path) -> None:
    """Nobody can connect before it listens; its directory is ours alone, and so is it."""
    path.unlink(missing_ok=True)  # an earlier daemon's
    sock.bind(str(path))
    path.chmod(0o600)
