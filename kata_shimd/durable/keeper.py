"""The daemon's side of the launcher's ``keep``: what is held there survives this daemon, and the next one gets it.

Each watches the other. The keeper starts a daemon when this one dies; when the keeper dies, this daemon starts another and gives it
everything again. Must never happen: something is used that ought to survive and has not been handed over yet.
"""

import asyncio
import fcntl
import logging
import os
import socket
import struct
import sys
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from kata_shimd import fds
from kata_shimd.durable import points
from kata_shimd.errors import HostFailed, ShimError

_log = logging.getLogger(__name__)

LISTEN: Final = "listen"
#: How the daemon before one that is on trial was begun, and for how many seconds it is tried.
BEFORE: Final = "before"
#: The keeper answers nothing, and reads at once; one that does not is as good as gone.
_SEND_SECONDS: Final = 2.0
#: How often it is asked to read something; one that has not by the next time hangs.
_PULSE_SECONDS: Final = 5.0
#: Pause before the next attempt to start a keeper.
_RETRY_SECONDS: Final = 1.0

#: ``admit(name, connection, journal)``: a connection has been accepted; both fds become the callee's.
Admit = Callable[[str, int, int], None]


#: ``begin(fd, next_connection, argv)`` starts a keeper whose control socket is ``fd``, and which begins daemons with ``argv``.
Begin = Callable[[int, int, Sequence[str]], None]


class Keeper:
    """``admit`` gets the connections that the keeper accepts."""

    #: Whether the next daemon is begun while this one lives.
    begins_ahead = True

    def __init__(self, begin: Begin, admit: Admit) -> None:
        self._begin, self._admit = begin, admit
        self._control: socket.socket | None = None
        self._held: dict[str, int] = {}
        self._next = 1
        self._loop = asyncio.get_running_loop()
        self._pulse: asyncio.TimerHandle | None = None
        #: While we are on trial: the command line of the daemon before us, and until when.
        self._back: tuple[Sequence[str], float] | None = None

    def start(self, control: int | None, held: Mapping[str, int]) -> None:
        """Go on with the keeper at ``control``, or begin one. ``held`` is what it has, or is to have; connections are admitted."""
        self._held = {name: fd for name, fd in held.items() if name[0] not in "cj" or not name[1:].isdigit()}
        connections = {name: fd for name, fd in held.items() if name not in self._held}
        self._back = self._way_back()
        if control is None:
            self._renew()
        else:
            self._watch(socket.socket(fileno=control))
        self._admit_all(connections)

    def hold(self, name: str, fd: int) -> None:
        """Have ``fd`` held under ``name`` from now on; it stays ours to use, and open until `release`."""
        replaced = self._held.get(name, fd)
        self._held[name] = fd
        if replaced != fd:
            os.close(replaced)  # an earlier daemon's, which came with our birth
        self._say(f"FDSTORE=1\nFDNAME={name}", fd)
        points.passed()

    def release(self, name: str) -> None:
        """The next daemon will not need it."""
        if self._held.pop(name, None) is not None:
            self._say(f"FDSTOREREMOVE=1\nFDNAME={name}")

    def held(self, name: str) -> int | None:
        return self._held.get(name)

    def names(self) -> tuple[str, ...]:
        return tuple(self._held)

    def ready(self) -> None:
        """This daemon serves; the next may be begun ahead."""
        self._say("READY=1")

    def next_is(self, argv: Sequence[str], patience: int) -> None:
        """The daemon after this one is ``argv``. It has ``patience`` seconds to settle, or one like us follows it.

        :raises HostFailed: there is no keeper to be told
        """
        if self._control is None:
            raise HostFailed("tell keeper", "the next daemon", "there is no keeper at the moment", hint="try again")
        # It may have to begin a keeper itself, which then has to know the way back.
        self.hold(BEFORE, _file([str(patience), *own_argv()]))
        fd = _file(argv)
        self._say(f"NEXT=1\nPATIENCE={patience}", fd)
        os.close(fd)

    def settled(self, launcher: Path) -> None:
        """This daemon has all that its pod has: one that was on trial stays, and the keeper becomes that of its ``launcher``."""
        self._back = None
        self._forget(BEFORE)
        self._say(f"SETTLED=1\nLAUNCHER={launcher}")

    def _way_back(self) -> tuple[Sequence[str], float] | None:
        """To the daemon before this one, if we are on trial. It is held as well when one like that has come back already."""
        if (fd := self.held(BEFORE)) is None:
            return None
        patience, *argv = _words(fd)
        if argv == own_argv() or not os.access(argv[0], os.X_OK):
            self._forget(BEFORE)
            return None
        return argv, time.monotonic() + int(patience)

    def _forget(self, name: str) -> None:
        if (fd := self.held(name)) is not None:
            self.release(name)
            os.close(fd)

    def close(self) -> None:
        if self._pulse is not None:
            self._pulse.cancel()
        if self._control is not None:
            self._loop.remove_reader(self._control.fileno())
            self._control.close()
            self._control = None

    # --- talking -----------------------------------------------------------------------------------------------------

    def _watch(self, control: socket.socket) -> None:
        control.settimeout(_SEND_SECONDS)
        self._control = control
        self._loop.add_reader(control.fileno(), self._hear)
        self._pulse = self._loop.call_later(_PULSE_SECONDS, self._beat)

    def _beat(self) -> None:
        """A keeper that hangs is found out before a daemon needs it: what was said last time has to be read by now."""
        if self._control is not None and _unread(self._control):
            _log.warning("the keeper does not read")
            self._lost()
            return
        self._pulse = self._loop.call_later(_PULSE_SECONDS, self._beat)
        self._say("WATCH=1")

    def _say(self, text: str, *sent: int) -> None:
        if self._control is None:
            return  # the next keeper gets all that is held
        try:
            socket.send_fds(self._control, [text.encode()], sent)
        except OSError as error:
            _log.warning("the keeper does not listen: %s", error)
            self._lost()

    def _hear(self) -> None:
        """All that there is: of a socket with an error some event loops tell once, and never again."""
        control = self._control
        assert control is not None
        given, gone = _drained(control)
        self._admit_all(given)
        if gone and self._control is control:  # it may have been found out meanwhile
            self._lost()

    def _admit_all(self, given: Mapping[str, int]) -> None:
        """All are on record before one is admitted, for that may be what finds out that the next keeper has to get them."""
        connections: list[tuple[str, int, int]] = []
        for name, fd in given.items():
            if name.startswith("c") and (journal := given.get(f"j{name[1:]}")) is not None:
                self._next = max(self._next, int(name[1:]) + 1)
                self._held[name], self._held[f"j{name[1:]}"] = fd, journal
                connections.append((name, fd, journal))
            elif not name.startswith("j") or f"c{name[1:]}" not in given:
                os.close(fd)
        for connection in connections:
            self._admit(*connection)

    # --- its end -----------------------------------------------------------------------------------------------------

    def _lost(self) -> None:
        _log.warning("the keeper has gone; another is started")
        assert self._control is not None
        given, _ = _drained(self._control)
        self.close()
        self._admit_all(given)
        self._renew()

    def _renew(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._begin(theirs.fileno(), self._next, own_argv() if self._back is None else self._back[0])
        except (HostFailed, OSError) as error:
            _log.error("no keeper: %s; trying again", error)
            ours.close()
            self._loop.call_later(_RETRY_SECONDS, self._renew)
            return
        finally:
            theirs.close()
        self._watch(ours)
        for name, fd in tuple(self._held.items()):
            self._say(f"FDSTORE=1\nFDNAME={name}", fd)
        if self._back is not None:
            left = max(1, round(self._back[1] - time.monotonic()))
            fd = _file(own_argv())
            self._say(f"NEXT=1\nPATIENCE={left}\nBEGUN=1", fd)
            os.close(fd)


def own_argv() -> list[str]:
    """How a daemon like this one is begun."""
    return [sys.executable, *sys.orig_argv[1:]]


def _file(words: Sequence[str]) -> int:
    """In memory; each word ends with NUL."""
    fd = os.memfd_create("argv", os.MFD_CLOEXEC)
    os.write(fd, b"".join(os.fsencode(word) + b"\0" for word in words))
    return fd


def _words(fd: int) -> list[str]:
    return [os.fsdecode(word) for word in os.pread(fd, os.fstat(fd).st_size, 0).split(b"\0")[:-1]]


def _drained(control: socket.socket) -> tuple[Mapping[str, int], bool]:
    """The fds that the keeper has given, by name, and whether it has gone."""
    heard: dict[str, int] = {}
    control.setblocking(False)
    try:
        while (words := _next(control)) is not None:
            heard |= words.fds
        return heard, True
    except BlockingIOError:
        return heard, False
    except (OSError, ShimError) as error:
        _log.warning("the keeper speaks nonsense: %s", error)
        return heard, True
    finally:
        control.settimeout(_SEND_SECONDS)


def _next(control: socket.socket) -> fds.Words | None:
    """That a keeper has died over something unread of ours is told first; what it had said is still there."""
    try:
        return fds.take(control)
    except ConnectionResetError:
        return fds.take(control)


def _unread(control: socket.socket) -> int:
    """Bytes, with the kernel's overhead, that the other end has not taken."""
    return int(struct.unpack("i", fcntl.ioctl(control.fileno(), termios.TIOCOUTQ, bytes(4)))[0])
