"""The zygote's child, from the fork to the daemon's ``main``: what `launcher/src/spawn.rs` does between fork and exec.

Must never happen: it does anything that lasts before the launcher has opened its gate; or it returns into the zygote, whose code
and descriptors it was born with.
"""

import ctypes
import fcntl
import gc
import json
import logging
import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final, NoReturn

from kata_shimd.errors import HostFailed

#: What a launcher's request brings, in this order.
FDS: Final = ("null", "stderr", "listen", "ready", "bootstrap", "gate", "environ")
#: What the daemon finds at 0, 1, 2, …
_PLACES: Final = ("null", "null", "stderr", "listen", "ready", "bootstrap")
_MAX_REQUEST: Final = 64 << 10
#: Said by a child that was forked ahead: it accepts from now on; it has what it becomes, and accepts no more.
WAITS: Final = b"w"
TAKEN: Final = b"t"

_CLONE_NEWNS: Final = 0x20000
_MS_REC: Final = 0x4000
_MS_SLAVE: Final = 0x80000
_MS_SHARED: Final = 0x100000
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NAME: Final = 15
_libc: Final = ctypes.CDLL(None, use_errno=True)

#: A daemon's ``main``: its words, and what comes back once it may do what lasts.
Main = Callable[[Sequence[str], Callable[[], None]], NoReturn]
#: A request, its descriptors, and its words if it is for a child that waits.
Received = tuple[bytes, Sequence[int], Sequence[str] | None]
Receive = Callable[[socket.socket], Received]


def become(argv: Sequence[str], fds: Mapping[str, int], main: Main) -> NoReturn:
    """A child forked for a request that is there."""

    def live() -> NoReturn:
        gate = _place(fds, lowest=max(fds.values()) + 1)
        os.closerange(len(_PLACES), gate)
        os.closerange(gate + 1, os.sysconf("SC_OPEN_MAX"))
        _begin(argv, gate, main)

    _never_return(live)


def wait(control: int, listener: int, prepare: Callable[[], Main], receive: Receive) -> NoReturn:
    """A child forked ahead: get ready, say so, and take the next request. It ends when the zygote does."""

    def live() -> NoReturn:
        zygote, requests = _alone(control, listener)
        _call("death signal", _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))
        _call("name", _libc.prctl(_PR_SET_NAME, b"kata-spare", 0, 0, 0))
        _signals()
        gc.enable()
        _rehearse()
        main = prepare()
        # From here the end of the socket says it; and once there is a request, the zygote's end is nothing to us.
        _call("death signal", _libc.prctl(_PR_SET_PDEATHSIG, 0, 0, 0, 0))
        argv, fds = _take(zygote, requests, receive)
        zygote.close()
        requests.close()
        _begin(argv, _place(dict(zip(FDS, fds, strict=True)), lowest=len(_PLACES)), main)

    _never_return(live)


def _take(zygote: socket.socket, requests: socket.socket, receive: Receive) -> tuple[Sequence[str], Sequence[int]]:
    """The words and descriptors of the first request that is ours; others are left to the zygote. Ends when that has."""
    poll = select.poll()
    poll.register(requests, select.POLLIN)
    poll.register(zygote, 0)
    try:
        zygote.send(WAITS)
        while not any(fd == zygote.fileno() for fd, _ in poll.poll()):
            with suppress(BlockingIOError), requests.accept()[0] as connection:
                try:
                    raw, fds, argv = receive(connection)
                except OSError:  # says nothing
                    continue
                if argv is not None:
                    zygote.send(TAKEN)
                    connection.send(json.dumps({"pid": os.getpid()}).encode())
                    return argv, fds
                socket.send_fds(zygote, [raw or b"?"], [connection.fileno(), *fds])
                for fd in fds:
                    os.close(fd)
    except ConnectionError:
        pass
    os._exit(0)


def _rehearse() -> None:
    """Put descriptors in place that leave all as it is."""
    environ, null = os.memfd_create("environ", os.MFD_CLOEXEC), os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.write(environ, b"".join(b"%s=%s\0" % entry for entry in os.environb.items()))
    for _ in range(3):
        fds = [os.dup(fd) for fd in (null, 2, null, null, null, null, environ)]
        os.close(_place(dict(zip(FDS, fds, strict=True)), lowest=len(_PLACES)))
    os.close(environ)
    os.close(null)


def _never_return(live: Callable[[], NoReturn]) -> NoReturn:
    code = 1
    try:
        live()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with suppress(OSError, ValueError):
            sys.stderr.flush()
        os._exit(code)


def _alone(*kept: int) -> list[socket.socket]:
    """Close what is the zygote's, but 0 to 2 and what is kept, and take the daemon's numbers, so that nothing else gets them."""
    above = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, max(*kept, len(_PLACES)) + 1) for fd in kept]
    os.closerange(3, above[0])
    os.closerange(above[-1] + 1, os.sysconf("SC_OPEN_MAX"))
    for _ in range(3, len(_PLACES)):
        os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    return [socket.socket(fileno=fd) for fd in above]


def _begin(argv: Sequence[str], fd: int, main: Main) -> NoReturn:
    gate = Gate(fd)
    try:
        _settle()
        # A keeper starts the next daemon as this one was started.
        sys.orig_argv[1:] = ["-I", "-m", "kata_shimd.daemon", *argv]
        main(argv, gate.pass_through)
    finally:
        # One that fails before says why when somebody listens.
        gate.pass_through()


class Gate:
    """Nothing that lasts is done before the ledger has us: the launcher opens the gate then. When it dies first, we end."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def pass_through(self) -> None:
        """Wait, once."""
        if self._fd < 0:
            return
        if os.read(self._fd, 1) == b"":
            os._exit(0)
        os.close(self._fd)
        self._fd = -1


def _place(fds: Mapping[str, int], *, lowest: int) -> int:
    """Give each its number, and close what it had; the gate. First out of the way: none is overwritten before it is used."""
    _environment(fds["environ"])
    copies = [fcntl.fcntl(fds[name], fcntl.F_DUPFD_CLOEXEC, lowest) for name in _PLACES]
    gate = fcntl.fcntl(fds["gate"], fcntl.F_DUPFD_CLOEXEC, lowest)
    for fd in fds.values():
        os.close(fd)
    for number, copy in enumerate(copies):
        os.dup2(copy, number)
        os.close(copy)
    # What the zygote had for its own may be anything.
    sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 - for the daemon's life
    return gate


def _environment(fd: int) -> None:
    """Ours becomes what the file says: entries that end with NUL."""
    entries = [entry.partition(b"=") for entry in os.pread(fd, os.fstat(fd).st_size, 0).split(b"\0")]
    wanted = {name: value for name, is_one, value in entries if is_one}
    wanted[b"LISTEN_PID"] = str(os.getpid()).encode()
    # Most of it is what the zygote was started with.
    for name in list(os.environb):
        if name not in wanted:
            del os.environb[name]
    for name, value in wanted.items():
        if os.environb.get(name) != value:
            os.environb[name] = value


def _settle() -> None:
    os.setsid()
    _call("mount namespace", _libc.unshare(_CLONE_NEWNS))
    for flag in (_MS_SLAVE, _MS_SHARED):
        _call("mount namespace", _libc.mount(None, b"/", None, ctypes.c_ulong(flag | _MS_REC), None))
    os.umask(0o077)
    os.chdir("/")
    _signals()
    _call("name", _libc.prctl(_PR_SET_NAME, b"kata-pod", 0, 0, 0))
    logging.getLogger().handlers.clear()
    gc.enable()


def _signals() -> None:
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # As the launcher has it: who looks for a daemon finds its pid before it has come to its own handlers.
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _call(step: str, result: int) -> None:
    if result != 0:
        raise HostFailed("start daemon", step, os.strerror(ctypes.get_errno()))
