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

One child is forked ahead, once nobody has asked for a moment: it has rehearsed its start (`rehearsal`), waits at the socket, and
takes the next request itself; what is not for it, it hands to the zygote. Requests that come while there is none are answered by
plain forks.
"""

import gc
import json
import logging
import os
import select
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


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it was received, and where to answer it."""

    connection: socket.socket
    raw: bytes
    fds: Sequence[int]
    flags: int

    @classmethod
    def receive(cls, connection: socket.socket) -> Self:
        """:raises OSError: nothing came in time"""
        connection.settimeout(PATIENCE)
        raw, fds, flags, _ = socket.recv_fds(connection, MAX_REQUEST, len(FDS))
        return cls(connection, raw, fds, flags)

    def check(self, installation: Installation) -> Request:
        """:raises InvalidArgument, FailedPrecondition: it is refused"""
        _check_peer(self.connection)
        request = parse(self.raw)
        if len(self.fds) != len(FDS) or self.flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise InvalidArgument("read request", "", f"{len(self.fds)} descriptors instead of {len(FDS)}")
        installation.check(request)
        return request


# --- a child forked ahead --------------------------------------------------------------------------------------------


class Spare:
    """A child that has all of its start behind it but the pod. It ends with the zygote, or when this is closed."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        #: Whether it takes the requests, which until then is the zygote's to do.
        self.waits = False

    @classmethod
    def fork(cls, listener: socket.socket, prepare: Callable[[], Main], receive: newborn.Receive) -> Self:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            newborn.wait(theirs.detach(), listener.detach(), prepare, receive)
        theirs.close()
        return cls(ours)

    def hear(self) -> Asked | None:
        """What it says next: a request that it leaves to us; or None, and then it waits, or is none any more."""
        try:
            raw, fds, flags, _ = socket.recv_fds(self.sock, MAX_REQUEST, len(FDS) + 1)
        except ConnectionError:
            raw, fds, flags = b"", [], 0
        if fds:
            return Asked(socket.socket(fileno=fds[0]), raw, fds[1:], flags)
        self.waits = raw == newborn.WAITS
        if not self.waits:
            self.sock.close()
        return None


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
        # A child that waits accepts too.
        self._listener.setblocking(False)

    def serve(self) -> NoReturn:
        """Fork on request, one after the other. Becomes a new zygote when the package was replaced."""
        # The kernel reaps them: nobody waits for a daemon here, its pidfd tells whom it concerns.
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        # And a child's pid is on record before it has done anything: who looks for a daemon (`newborn`) ends none.
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)
        while True:
            asked = self._next()
            if asked is not None:
                with asked.connection:
                    self._answer(asked)
            if self._installation.stale:
                self._renew()

    def _next(self) -> Asked | None:
        """The next request, if it comes now. A child that waits takes all it can; when nobody asks for a while, one is forked."""
        spare = self._spare
        if spare is not None and spare.waits:
            return self._hear(spare)
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        if spare is not None:
            poll.register(spare.sock, select.POLLIN)
        events = poll.poll(QUIET * 1000 if self._prepare is not None and spare is None else None)
        if not events and self._prepare is not None:
            self._spare = Spare.fork(self._listener, self._prepare, self._receive)
        if spare is not None and any(fd == spare.sock.fileno() for fd, _ in events):
            return self._hear(spare)
        return self._accept() if events else None

    def _hear(self, spare: Spare) -> Asked | None:
        asked = spare.hear()
        if asked is None and not spare.waits:
            self._spare = None
        return asked

    def _accept(self) -> Asked | None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return None  # a child was quicker
        try:
            return Asked.receive(connection)
        except OSError as error:
            _log.warning("%s", error)
            connection.close()
            return None

    def _receive(self, connection: socket.socket) -> newborn.Received:
        """In a child that waits: what was asked for, if it is the child's to become."""
        asked = Asked.receive(connection)
        try:
            request = asked.check(self._installation)
        except ShimError:
            whole = not asked.flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)
            return asked.raw if whole else b"", asked.fds, None
        return asked.raw, asked.fds, None if request.orphan else request.argv

    def close(self) -> None:
        self.path.unlink(missing_ok=True)
        self._listener.close()
        if self._spare is not None:
            self._spare.sock.close()

    def _answer(self, asked: Asked) -> None:
        try:
            answer: Mapping[str, Any] = {"pid": self._fork(asked)}
        except (ShimError, OSError) as error:
            _log.warning("%s", error)
            answer = {"error": str(error)}
        finally:
            for fd in asked.fds:
                os.close(fd)
        with suppress(OSError):
            asked.connection.send(json.dumps(answer).encode())

    def _fork(self, asked: Asked) -> int:
        request = asked.check(self._installation)
        become = partial(newborn.become, request.argv, dict(zip(FDS, asked.fds, strict=True)), self._main)
        return _fork_orphan(become) if request.orphan else _fork(become)

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
