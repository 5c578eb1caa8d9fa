"""systemd as the keeper: its store of file descriptors holds what the unit's next daemon gets.

What `keeper` says to a keeper of ours is said to systemd, in its own protocol. Two things are different. systemd accepts no
connection for us: the daemon does, and hands it over before it reads a byte from it; one that comes in the moment before is lost
with the daemon. And systemd does not replace what it holds under a name, it holds both: so a name has a generation, and the newest
counts.
Must never happen: something is used that ought to survive and has not been handed over yet.
"""

import logging
import os
import socket
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from kata_shimd.durable import points
from kata_shimd.durable.keeper import LISTEN, Admit, Keeper, own_argv
from kata_shimd.durable.memory import new
from kata_shimd.durable.tape import HEAD
from kata_shimd.durable.trial import Trial
from kata_shimd.errors import HostFailed
from kata_shimd.notify import Notifier
from kata_shimd.ttrpc.server import peer_of

_log = logging.getLogger(__name__)

#: What a later daemon is started with, and the mount namespace it lives in (`launcher/src/unit/birth.rs`).
LAUNCH: Final = "launch"
#: The same of another installation's daemon, which is to be tried in this one's place.
NEXT: Final = "next"
MOUNTS: Final = "mounts"
#: systemd would have us believe that what has hung up need not be held; we want to see that for ourselves.
_FLAGS: Final = "FDPOLL=0"
#: Between a name and its generation; the first has none.
_MARK: Final = "+"
#: Pause before what systemd did not take is said again, and after the host had no descriptor left.
_RETRY_SECONDS: Final = 0.5


class SystemdKeeper(Keeper):
    """A `Keeper` whose other end is systemd. ``admit`` gets connections as there.

    systemd begins what the unit says; the way on to another installation, and the way back, is what it holds and what the ledger
    says (``trial``)."""

    begins_ahead = False

    def __init__(self, notifier: Notifier, admit: Admit, trial: Trial) -> None:
        super().__init__(_nobody, admit)
        self._notifier, self._trial = notifier, trial
        self._generations: dict[str, int] = {}
        self._unsaid: deque[tuple[str, Sequence[int]]] = deque()
        self._listener: socket.socket | None = None

    def start(self, control: int | None, held: Mapping[str, int]) -> None:
        """Go on with what systemd holds, or have it hold ``held``; then accept."""
        assert control is None
        found = self._newest(held)
        connections = {name: fd for name, fd in found.items() if _is_connection(name)}
        self._held = {name: fd for name, fd in found.items() if name not in connections}
        self._admit_all(connections | dict(self._journals(connections)))
        if not self._trial.is_on:
            # Whoever was to be tried has been, or is not wanted.
            self._forget(NEXT)
        self._accept_at(self._held[LISTEN])

    def hold(self, name: str, fd: int) -> None:
        """Have ``fd`` held under ``name`` from now on; it stays ours to use, and open until `release`."""
        before, generation = self._held.get(name), self._generations.get(name)
        if before != fd or generation is None:
            self._generations[name] = 0 if generation is None else generation + 1
            self._held[name] = fd
            self._say(f"FDSTORE=1\nFDNAME={self._stored(name)}\n{_FLAGS}", fd)
            if generation is not None:
                self._say(f"FDSTOREREMOVE=1\nFDNAME={_stored(name, generation)}")
            if before is not None and before != fd:
                os.close(before)  # an earlier daemon's, which came with our birth
        points.passed()

    def release(self, name: str) -> None:
        """The next daemon will not need it."""
        if self._held.pop(name, None) is not None and name in self._generations:
            self._say(f"FDSTOREREMOVE=1\nFDNAME={self._stored(name)}")
            del self._generations[name]

    def next_is(self, argv: Sequence[str], patience: int) -> None:
        """As there. It is tried when the ledger says so, which is said last.

        :raises HostFailed: systemd does not take it
        """
        self.hold(NEXT, launch(argv, os.environb))
        if self._unsaid:
            self._forget(NEXT)
            raise HostFailed("tell systemd", "the next daemon", "it does not listen at the moment", hint="try again")
        self._trial.comes_next(patience)

    def settled(self, launcher: Path) -> None:
        """A daemon that was on trial stays from the moment that later ones are to be started as it was."""
        if not self._trial.is_on:
            return
        self._trial.has_time()
        self.hold(LAUNCH, launch(own_argv(), os.environb))
        self._trial.is_past()
        self._forget(NEXT)

    def ready(self) -> None:
        """Nothing is begun ahead: systemd starts the next when it is needed."""

    def close(self) -> None:
        if self._listener is not None:
            self._loop.remove_reader(self._listener.fileno())
            self._listener.close()
            self._listener = None

    # --- what is held ------------------------------------------------------------------------------------------------

    def keep(self, names: Iterable[str]) -> None:
        """Have what we were born with held under these names."""
        for name in names:
            self.hold(name, self._held[name])

    def _stored(self, name: str) -> str:
        return _stored(name, self._generations[name])

    def _newest(self, held: Mapping[str, int]) -> Mapping[str, int]:
        """Of what we were born with, the newest of each name. All of it but the first daemon's is in the store."""
        newest: dict[str, int] = {}
        for generation, name, fd in sorted((*_parsed(stored), fd) for stored, fd in held.items()):
            if name in newest:
                self._say(f"FDSTOREREMOVE=1\nFDNAME={self._stored(name)}")
                os.close(newest[name])
            newest[name] = fd
            self._generations[name] = generation
        if LAUNCH not in newest:
            self._generations.clear()
        return newest

    def _say(self, text: str, *sent: int) -> None:
        """In order, and again until systemd has it."""
        if self._unsaid:
            self._unsaid.append((text, [os.dup(fd) for fd in sent]))
            return
        try:
            self._notifier.say(text, *sent)
        except OSError as error:
            _log.error("systemd does not listen: %s; trying again", error)
            self._unsaid.append((text, [os.dup(fd) for fd in sent]))
            self._loop.call_later(_RETRY_SECONDS, self._say_again)

    def _say_again(self) -> None:
        while self._unsaid:
            text, sent = self._unsaid[0]
            try:
                self._notifier.say(text, *sent)
            except OSError:
                self._loop.call_later(_RETRY_SECONDS, self._say_again)
                return
            for fd in sent:
                os.close(fd)
            self._unsaid.popleft()

    # --- accepting ---------------------------------------------------------------------------------------------------

    def _journals(self, connections: Mapping[str, int]) -> Iterator[tuple[str, int]]:
        """For connections whose daemon died before they had one: nothing was read from them."""
        for name in connections:
            journal = f"j{name[1:]}"
            if name.startswith("c") and journal not in connections:
                yield journal, self._journal(journal)

    def _journal(self, name: str) -> int:
        fd = new(HEAD)
        self.hold(name, fd)
        return fd

    def _accept_at(self, fd: int) -> None:
        self._listener = socket.socket(fileno=os.dup(fd))
        self._listener.setblocking(False)
        self._loop.add_reader(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        assert self._listener is not None
        while True:
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                _log.warning("accept: %s; trying again", error)
                self._loop.remove_reader(self._listener.fileno())
                self._loop.call_later(_RETRY_SECONDS, self._loop.add_reader, self._listener.fileno(), self._accept)
                return
            self._take(connection)

    def _take(self, connection: socket.socket) -> None:
        """Hand it over before anything else is done with it."""
        number = self._number()
        name, journal = f"c{number}", f"j{number}"
        self.hold(name, connection.fileno())
        connection.setblocking(False)
        if not _is_ours(connection):
            self.release(name)
            connection.close()
            return
        self._admit(name, connection.detach(), self._journal(journal))

    def _number(self) -> int:
        """Never given twice in a pod, whoever gives it: microseconds since the host's start."""
        self._next = max(self._next + 1, time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000)
        return self._next


def _stored(name: str, generation: int) -> str:
    return f"{name}{_MARK}{generation}" if generation else name


def _parsed(stored: str) -> tuple[int, str]:
    name, _, generation = stored.partition(_MARK)
    return int(generation) if generation.isdigit() else 0, name


def _is_connection(name: str) -> bool:
    return name[:1] in ("c", "j") and name[1:].isdigit()


def _is_ours(connection: socket.socket) -> bool:
    """Root, or whoever we are."""
    try:
        return peer_of(connection).uid in (0, os.geteuid())
    except OSError as error:
        _log.warning("accept: peer credentials: %s", error)
        return False


def _nobody(_fd: int, _next_connection: int, _argv: Sequence[str]) -> None:
    raise AssertionError("systemd needs no begin")


def launch(argv: Sequence[str], environ: Mapping[bytes, bytes]) -> int:
    """What a later daemon is started with, in memory: words, an empty entry, environment; each entry ends with NUL."""
    entries = [*map(os.fsencode, argv), b"", *(name + b"=" + value for name, value in environ.items())]
    fd = os.memfd_create("launch", os.MFD_CLOEXEC)
    with open(fd, "wb", closefd=False) as file:
        file.write(b"".join(entry + b"\0" for entry in entries))
    return fd


def mounts() -> int:
    """The mount namespace, in which the containers' mounts are."""
    return os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
