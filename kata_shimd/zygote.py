"""The zygote: one process a node that has imported everything, and forks a pod's daemon when a launcher asks.

A daemon of its own costs a cold interpreter and its imports; a fork costs milliseconds, and shares with its siblings what none of
them changes. A composition root, above `daemon`. It has one thread, no event loop and no sockets but its own, so that what is
forked is what a fresh interpreter would have become. Must never happen: a pod depends on it. Without it, or when it refuses, or
dies with a fork half done, the launcher starts the daemon itself (`launcher/src/zygote.rs`).

One SOCK_SEQPACKET connection a fork. The launcher sends a JSON object, at most MAX_REQUEST bytes,

    {"v": 1, "version": "0.1.0", "python": "/…/python3", "argv": ["--run-dir", …], "orphan": false}

with seven descriptors: the daemon's 0 and 1, 2, 3 to 5 (as `docs/contracts.md` has them), the gate, and its environment (a memfd,
entries end with NUL). An orphan is not the zygote's child but whoever's the orphans are: systemd's, which learns of the ends of
its own children only. The answer is {"pid": n} or {"error": "…"}. The child does nothing before it has read a byte from the gate.

One child is forked ahead, once nobody has asked for a moment: it has rehearsed its start (`rehearsal`) and waits. It is given the
next request; those that come sooner than the next such child are answered by plain forks.
"""

import gc
import json
import logging
import os
import signal
import socket
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, NoReturn, Self

import kata_shimd
from kata_shimd import newborn
from kata_shimd.errors import FailedPrecondition, HostFailed, InvalidArgument, ShimError
from kata_shimd.newborn import FDS, Main

_log = logging.getLogger(__name__)

SOCKET: Final = "zygote.sock"
PROTOCOL: Final = 1
MAX_REQUEST: Final = 64 << 10
#: A launcher that connects and says nothing may hold up others this long.
PATIENCE: Final = 1.0
_UCRED: Final = struct.Struct("3i")
_BACKLOG: Final = 64

#: A child is forked ahead when nobody has asked for so long: it takes processor time, which a pod that begins needs more.
QUIET: Final = 0.25


@dataclass(frozen=True, slots=True)
class Request:
    """What a launcher asks for."""

    version: str
    python: str
    argv: tuple[str, ...]
    orphan: bool = False


def parse(raw: bytes) -> Request:
    """:raises InvalidArgument: it is no request of this protocol"""
    try:
        said = json.loads(raw)
    except ValueError as error:
        raise InvalidArgument("read request", "", f"no JSON: {error}") from error
    match said:
        case {"v": 1, "version": str(version), "python": str(python), "argv": list(argv)} if all(
            isinstance(word, str) for word in argv
        ):
            return Request(version, python, tuple(argv), said.get("orphan") is True)
    raise InvalidArgument("read request", "", "not a request of protocol 1")


class Installation:
    """What this zygote has loaded; a package that was replaced since makes it stale."""

    def __init__(self) -> None:
        self._file = Path(kata_shimd.__file__)
        self._loaded = self._stamp()

    def _stamp(self) -> tuple[int, int, int]:
        """An installer writes files anew, so it is another inode or another time."""
        with suppress(OSError):
            found = self._file.stat()
            return found.st_dev, found.st_ino, found.st_mtime_ns
        return 0, 0, 0

    @property
    def stale(self) -> bool:
        return self._stamp() != self._loaded

    def check(self, request: Request) -> None:
        """:raises FailedPrecondition: the launcher belongs to another installation or version"""
        if self.stale:
            raise FailedPrecondition("fork daemon", str(self._file), "the package was replaced; a new zygote is coming")
        if request.python != sys.executable:
            raise FailedPrecondition("fork daemon", request.python, f"this zygote is {sys.executable}")
        if request.version != kata_shimd.__version__:
            raise FailedPrecondition("fork daemon", request.version, f"this zygote is {kata_shimd.__version__}")


# --- warming ---------------------------------------------------------------------------------------------------------


def warm() -> Main:
    """Import what a daemon will need, and use it once; the daemon's ``main``. What is collected now is not copied later."""
    from kata_shimd import daemon, rehearsal, warmth

    warmth.use_once()
    rehearsal.in_zygote()
    gc.collect()
    gc.freeze()
    return daemon.main


# --- a child forked ahead --------------------------------------------------------------------------------------------


class Spare:
    """A child that has all of its start behind it but the pod. It ends with the zygote, or when this is closed."""

    def __init__(self, pid: int, sock: socket.socket) -> None:
        self.pid, self._sock = pid, sock

    @classmethod
    def fork(cls, prepare: Callable[[], Main]) -> Self:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            newborn.wait(theirs.detach(), prepare)
        theirs.close()
        return cls(pid, ours)

    def take(self, raw: bytes, fds: Sequence[int]) -> bool:
        """Whether it becomes what is asked for. False while it still rehearses, and when it is gone."""
        try:
            if self._sock.recv(1, socket.MSG_DONTWAIT) == newborn.WAITS:
                socket.send_fds(self._sock, [raw], fds)
                return True
        except OSError:
            pass
        return False

    def close(self) -> None:
        self._sock.close()


# --- serving ---------------------------------------------------------------------------------------------------------


class Zygote:
    """Owns the listening socket. ``serve`` never returns by itself."""

    def __init__(self, run_dir: Path, main: Main, prepare: Callable[[], Main] | None = None) -> None:
        """
        :param prepare: what a child that is forked ahead does first; it comes back with its ``main``
        """
        self._main, self._prepare = main, prepare
        self._spare: Spare | None = None
        self._installation = Installation()
        self.path = run_dir / SOCKET
        self._listener = listen(self.path)

    def serve(self) -> NoReturn:
        """Fork on request, one after the other. Becomes a new zygote when the package was replaced."""
        # The kernel reaps them: nobody waits for a daemon here, its pidfd tells whom it concerns.
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while True:
            connection = self._next()
            with connection:
                self._answer(connection)
            if self._installation.stale:
                self._renew()

    def _next(self) -> socket.socket:
        """The next request's connection. When none comes for a while, a child is forked for it meanwhile."""
        if self._prepare is not None and self._spare is None:
            self._listener.settimeout(QUIET)
            with suppress(TimeoutError):
                return self._listener.accept()[0]
            self._spare = Spare.fork(self._prepare)
        self._listener.settimeout(None)
        return self._listener.accept()[0]

    def close(self) -> None:
        self.path.unlink(missing_ok=True)
        self._listener.close()
        if self._spare is not None:
            self._spare.close()

    def _answer(self, connection: socket.socket) -> None:
        connection.settimeout(PATIENCE)
        fds: list[int] = []
        try:
            _check_peer(connection)
            raw, fds, flags, _ = socket.recv_fds(connection, MAX_REQUEST, len(FDS))
            answer: Mapping[str, Any] = {"pid": self._fork(raw, fds, flags)}
        except (ShimError, OSError) as error:
            _log.warning("%s", error)
            answer = {"error": str(error)}
        finally:
            for fd in fds:
                os.close(fd)
        with suppress(OSError):
            connection.send(json.dumps(answer).encode())

    def _fork(self, raw: bytes, fds: Sequence[int], flags: int) -> int:
        request = parse(raw)
        if len(fds) != len(FDS) or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise InvalidArgument("read request", "", f"{len(fds)} descriptors instead of {len(FDS)}")
        self._installation.check(request)
        if not request.orphan and (pid := self._give(raw, fds)):
            return pid
        become = partial(newborn.become, request.argv, dict(zip(FDS, fds, strict=True)), self._main)
        return _fork_orphan(become) if request.orphan else _fork(become)

    def _give(self, raw: bytes, fds: Sequence[int]) -> int:
        """The pid of the child that was forked ahead, if there is one; there is none afterwards."""
        if (spare := self._spare) is None:
            return 0
        self._spare = None
        taken = spare.take(raw, fds)
        spare.close()
        return spare.pid if taken else 0

    def _renew(self) -> NoReturn:
        _log.warning("the package was replaced: a new zygote takes over")
        self.close()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def listen(path: Path) -> socket.socket:
    """A listening socket, open to us alone.

    :raises FailedPrecondition: another zygote listens there
    :raises HostFailed: it cannot be made
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if _listens(path):
            raise FailedPrecondition("listen", str(path), "another zygote listens there")
        path.unlink(missing_ok=True)
        sock.bind(str(path))
        path.chmod(0o600)
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise HostFailed("listen", str(path), error.strerror or str(error)) from error
    except ShimError:
        sock.close()
        raise
    return sock


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        return probe.connect_ex(str(path)) == 0


def _check_peer(connection: socket.socket) -> None:
    pid, uid, _ = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    if uid != os.geteuid():
        raise FailedPrecondition("fork daemon", f"process {pid}", f"it belongs to user {uid}")


def _fork(become: Callable[[], NoReturn]) -> int:
    pid = os.fork()
    if pid == 0:
        become()
    return pid


def _fork_orphan(become: Callable[[], NoReturn]) -> int:
    """Forked by a child that ends at once; when this returns, it has."""
    reader, writer = os.pipe()
    between = os.fork()
    if between == 0:
        try:
            os.write(writer, str(_fork(become)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with suppress(ChildProcessError):  # the kernel has reaped it
        os.waitpid(between, 0)
    answer = os.read(reader, 32)
    os.close(reader)
    return int(answer)
