"""Talking to systemd, and the watchdog: who is told what, and when nothing is said."""

import asyncio
import os
import socket
from contextlib import suppress

import pytest

from kata_shimd.errors import InvalidArgument, VmFailed
from kata_shimd.notify import Notifier
from kata_shimd.watchdog import watch


@pytest.fixture
def manager(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(5)
        yield sock


def adopted(manager, **more):
    environ = {"NOTIFY_SOCKET": manager.getsockname(), "PATH": "/bin", **more}
    notifier = Notifier.adopt(environ)
    assert environ == {"PATH": "/bin"}, "children do not believe that it is meant for them"
    return notifier


def test_a_word_and_a_descriptor(manager):
    reader, writer = os.pipe()
    notifier = adopted(manager)
    notifier.say("READY=1")
    notifier.say("FDSTORE=1", reader)
    assert manager.recv(100) == b"READY=1"
    text, (fd,), _, _ = socket.recv_fds(manager, 100, 1)
    assert (text, os.path.sameopenfile(fd, reader)) == (b"FDSTORE=1", True)
    for each in (reader, writer, fd):
        os.close(each)
    notifier.close()


def test_an_abstract_address():
    name = f"kata-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0" + name)
        notifier = Notifier.adopt({"NOTIFY_SOCKET": "@" + name})
        notifier.say("READY=1")
        assert sock.recv(100) == b"READY=1"
        notifier.close()


def test_nobody_listens(tmp_path):
    assert Notifier.adopt({}) is None
    with pytest.raises(InvalidArgument, match="tell systemd"):
        Notifier.adopt({"NOTIFY_SOCKET": str(tmp_path / "none")})


@pytest.mark.parametrize(("said", "seconds"), [("3000000", 3.0), ("", None), ("0", None), ("x", None)])
def test_how_often_it_wants_to_hear(manager, said, seconds):
    notifier = adopted(manager, WATCHDOG_USEC=said, WATCHDOG_PID="1")
    assert notifier.watchdog == seconds
    notifier.close()


def watched(manager, answers, seconds=0.08):
    async def body():
        notifier = adopted(manager, WATCHDOG_USEC=str(int(seconds * 1e6)))
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await watch(notifier, answers)
        notifier.close()

    asyncio.run(body())
    manager.setblocking(False)
    words = []
    try:
        while True:
            words.append(manager.recv(100))
    except BlockingIOError:
        return words


def test_the_watchdog_hears_of_a_daemon_that_is_well(manager):
    async def well():
        pass

    words = watched(manager, well)
    assert set(words) == {b"WATCHDOG=1"}


def test_the_watchdog_hears_nothing_of_one_whose_machine_fails_or_does_not_answer(manager):
    async def fails():
        raise VmFailed("ask QMP", "m", "gone")

    async def hangs():
        await asyncio.Event().wait()

    assert watched(manager, fails) == []
    assert watched(manager, hangs) == []


def test_where_systemd_does_not_ask_nothing_is_said(manager):
    async def body():
        notifier = adopted(manager)
        await watch(notifier, lambda: pytest.fail("asked"))
        notifier.close()

    asyncio.run(body())
