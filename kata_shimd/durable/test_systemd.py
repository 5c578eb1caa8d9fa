"""systemd as the keeper, with a stand-in that keeps what it is told to, as sd_pid_notify_with_fds(3) has it."""

import asyncio
import os
import socket
from contextlib import suppress
from types import SimpleNamespace

import pytest

from kata_shimd.durable import systemd
from kata_shimd.durable.keeper import LISTEN
from kata_shimd.durable.systemd import LAUNCH, NEXT, SystemdKeeper
from kata_shimd.errors import HostFailed
from kata_shimd.notify import Notifier


class Manager:
    """Holds fds under names; a name may be held more than once."""

    def __init__(self, path):
        self.path = path
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(str(path))
        self.sock.setblocking(False)
        self.held = []

    def hear(self):
        """Take what was said; the names that are held."""
        with suppress(BlockingIOError):
            while True:
                text, fds, _, _ = socket.recv_fds(self.sock, 4096, 4)
                self._take(dict(line.split("=", 1) for line in text.decode().splitlines()), fds)
        return [name for name, _ in self.held]

    def _take(self, lines, fds):
        if "FDSTORE" in lines:
            (fd,) = fds
            assert lines["FDPOLL"] == "0"
            self.held.append((lines["FDNAME"], fd))
        elif "FDSTOREREMOVE" in lines:
            gone = [fd for name, fd in self.held if name == lines["FDNAME"]]
            assert gone, lines
            self.held = [(name, fd) for name, fd in self.held if fd not in gone]
            for fd in gone:
                os.close(fd)

    def born_with(self):
        """What the next daemon finds."""
        return {name: os.dup(fd) for name, fd in self.held}

    def close(self):
        for _, fd in self.held:
            os.close(fd)
        self.sock.close()


@pytest.fixture
def manager(tmp_path):
    made = Manager(tmp_path / "notify")
    yield made
    made.hear()
    made.close()


@pytest.fixture
def listener(tmp_path):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "shim.sock"))
        sock.listen()
        yield sock


def pipe_end():
    reader, writer = os.pipe()
    os.close(writer)
    return reader


#: Nobody is tried.
NONE = SimpleNamespace(is_on=False)


class Daemon:
    """As much of one as has to do with its keeper; must be made in a running loop."""

    def __init__(self, manager, born, trial=NONE):
        self.admitted = {}
        self.keeper = SystemdKeeper(Notifier(str(manager.path), None), self._admit, trial)
        self.keeper.start(None, born)

    def _admit(self, name, connection, journal):
        self.admitted[name] = connection, journal

    def first(self):
        self.keeper.keep((LISTEN,))
        self.keeper.hold(LAUNCH, pipe_end())
        return self

    def die(self):
        self.keeper.close()
        self.keeper._notifier.close()
        for fd in {*self.keeper._held.values(), *(fd for pair in self.admitted.values() for fd in pair)}:
            os.close(fd)


def run(body):
    return asyncio.run(body())


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - what is looked at is a socket's other end
            await asyncio.sleep(0)


def test_nothing_is_kept_before_it_is_told(manager, listener):
    async def body():
        daemon = Daemon(manager, {LISTEN: os.dup(listener.fileno())})
        assert manager.hear() == []
        daemon.first()
        assert manager.hear() == [LISTEN, LAUNCH]
        daemon.die()

    run(body)


def test_a_name_that_is_held_anew_is_held_once(manager, listener):
    async def body():
        daemon = Daemon(manager, {LISTEN: os.dup(listener.fileno())}).first()
        keeper = daemon.keeper
        for _ in range(3):
            keeper.hold("in", pipe_end())
        keeper.hold("in", keeper.held("in"))
        assert manager.hear() == [LISTEN, LAUNCH, "in+2"]
        keeper.hold("out", fd := pipe_end())
        keeper.release("out")
        os.close(fd)
        keeper.release("out")
        assert manager.hear() == [LISTEN, LAUNCH, "in+2"]
        daemon.die()

    run(body)


def test_a_daemon_killed_while_it_replaced_is_followed_by_one_with_the_newer(manager, listener):
    async def body():
        first = Daemon(manager, {LISTEN: os.dup(listener.fileno())}).first()
        first.keeper.hold("in", pipe_end())
        manager.hear()
        newer = pipe_end()
        first.keeper._notifier.say("FDSTORE=1\nFDNAME=in+1\nFDPOLL=0", newer)
        assert manager.hear() == [LISTEN, LAUNCH, "in", "in+1"]
        first.die()
        second = Daemon(manager, manager.born_with())
        assert os.path.sameopenfile(second.keeper.held("in"), newer)
        assert manager.hear() == [LISTEN, LAUNCH, "in+1"]
        second.keeper.release("in")
        assert manager.hear() == [LISTEN, LAUNCH]
        os.close(newer)
        second.keeper._held.pop("in", None)
        second.die()

    run(body)


def test_a_connection_is_kept_before_it_is_admitted(manager, listener):
    async def body():
        daemon = Daemon(manager, {LISTEN: os.dup(listener.fileno())}).first()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(listener.getsockname())
            await until(lambda: daemon.admitted)
            (name,) = daemon.admitted
            assert manager.hear()[2:] == [name, f"j{name[1:]}"]
            daemon.die()
            later = Daemon(manager, manager.born_with())
            assert set(later.admitted) == {name}
            assert manager.hear()[2:] == [name, f"j{name[1:]}"], "it is held already"
            later.die()

    run(body)


def test_a_connection_that_has_no_journal_yet_gets_one(manager, listener):
    """Its daemon died between the two."""

    async def body():
        first = Daemon(manager, {LISTEN: os.dup(listener.fileno())}).first()
        ours, theirs = socket.socketpair()
        first.keeper._notifier.say("FDSTORE=1\nFDNAME=c17\nFDPOLL=0", theirs.fileno())
        manager.hear()
        first.die()
        later = Daemon(manager, manager.born_with())
        assert set(later.admitted) == {"c17"}
        assert manager.hear()[2:] == ["c17", "j17"]
        later.die()
        ours.close()
        theirs.close()

    run(body)


def test_numbers_are_not_given_twice(manager, listener):
    async def body():
        given = set()
        for _ in range(3):
            daemon = Daemon(manager, {LISTEN: os.dup(listener.fileno())})
            given |= {daemon.keeper._number() for _ in range(5)}
            daemon.die()
        assert len(given) == 15

    run(body)


def test_what_systemd_does_not_take_is_said_again_in_order(manager, listener, monkeypatch):
    async def body():
        monkeypatch.setattr(systemd, "_RETRY_SECONDS", 0.01)
        daemon = Daemon(manager, {LISTEN: os.dup(listener.fileno())}).first()
        manager.hear()
        say, deaf = daemon.keeper._notifier.say, [True]

        def stubborn(text, *fds):
            if deaf[0]:
                raise TimeoutError("deaf")
            say(text, *fds)

        monkeypatch.setattr(daemon.keeper._notifier, "say", stubborn)
        for name in ("a", "b"):
            daemon.keeper.hold(name, pipe_end())
        daemon.keeper.hold("a", pipe_end())
        assert manager.hear() == [LISTEN, LAUNCH]
        deaf[0] = False
        await until(lambda: manager.hear()[2:] == ["b", "a+1"])
        daemon.die()

    run(body)


class Told:
    """A trial that notes what is said of it."""

    def __init__(self, *, is_on=False):
        self.is_on, self.said = is_on, []

    def comes_next(self, patience):
        self.said.append(f"next {patience}")

    def has_time(self):
        self.said.append("time")

    def is_past(self):
        self.said.append("past")


def test_one_that_settles_is_held_in_place_of_the_one_before(manager, listener):
    async def body():
        told = Told()
        first = Daemon(manager, {LISTEN: os.dup(listener.fileno())}, told).first()
        first.keeper.next_is(["/new/python3"], 9)
        assert (manager.hear(), told.said) == ([LISTEN, LAUNCH, NEXT], ["next 9"])
        first.die()
        told = Told(is_on=True)
        tried = Daemon(manager, manager.born_with(), told)
        assert manager.hear() == [LISTEN, LAUNCH, NEXT], "it has yet to settle"
        tried.keeper.settled("/new/launcher")
        assert (manager.hear(), told.said) == ([LISTEN, f"{LAUNCH}+1"], ["time", "past"])
        tried.die()

    run(body)


def test_one_that_follows_a_trial_takes_it_away(manager, listener):
    async def body():
        first = Daemon(manager, {LISTEN: os.dup(listener.fileno())}, Told()).first()
        first.keeper.next_is(["/new/python3"], 9)
        manager.hear()
        first.die()
        told = Told()
        back = Daemon(manager, manager.born_with(), told)
        back.keeper.settled("/launcher")
        assert (manager.hear(), told.said) == ([LISTEN, LAUNCH], [])
        back.die()

    run(body)


def test_nobody_comes_next_of_whom_systemd_does_not_hear(manager, listener, monkeypatch):
    async def body():
        monkeypatch.setattr(systemd, "_RETRY_SECONDS", 0.01)
        told = Told()
        daemon = Daemon(manager, {LISTEN: os.dup(listener.fileno())}, told).first()
        say, deaf = daemon.keeper._notifier.say, [True]

        def stubborn(text, *fds):
            if deaf[0]:
                raise TimeoutError("deaf")
            say(text, *fds)

        monkeypatch.setattr(daemon.keeper._notifier, "say", stubborn)
        with pytest.raises(HostFailed, match="tell systemd: the next daemon: it does not listen at the moment"):
            daemon.keeper.next_is(["/new/python3"], 9)
        deaf[0] = False
        await until(lambda: not daemon.keeper._unsaid)
        assert (manager.hear(), told.said) == ([LISTEN, LAUNCH], [])
        daemon.die()

    run(body)


def test_what_a_later_daemon_is_started_with():
    fd = systemd.launch(["python3", "-I"], {b"PATH": b"/bin", b"ODD": b"\xff="})
    assert os.pread(fd, 100, 0) == b"python3\0-I\0\0PATH=/bin\0ODD=\xff=\0"
    os.close(fd)
