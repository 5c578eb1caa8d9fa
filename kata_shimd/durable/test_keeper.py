"""The daemon's side of a keeper whose other end is the test."""

import asyncio
import os
import socket

import pytest
import uvloop

from kata_shimd.durable.keeper import Keeper

LOOPS = pytest.mark.parametrize("loop", [asyncio.SelectorEventLoop, uvloop.Loop], ids=["asyncio", "uvloop"])


class Ends:
    """A `Keeper`, and the control sockets of the keepers that it has begun. Must be made in a running loop."""

    def __init__(self):
        self.admitted = {}
        self.began = []
        self.on_admit = lambda: None
        self.keeper = Keeper(self._begin, self._admit)
        self.keeper.start(None, {})

    def _begin(self, fd, next_connection):
        self.began.append(socket.socket(fileno=os.dup(fd)))

    def _admit(self, name, connection, journal):
        self.admitted[name] = connection, journal
        self.on_admit()

    def close(self):
        self.keeper.close()
        for sock in self.began:
            sock.close()
        for fd in (fd for pair in self.admitted.values() for fd in pair):
            os.close(fd)


def give(control, number):
    """As a keeper gives a connection that it has accepted."""
    fds = os.pipe()
    socket.send_fds(control, [f"LISTEN_FDNAMES=c{number}:j{number}".encode()], fds)
    for fd in fds:
        os.close(fd)


def run(loop, body):
    async def whole():
        ends = Ends()
        try:
            await body(ends)
        finally:
            ends.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(whole())


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - what is looked at has no event
            await asyncio.sleep(0)


@LOOPS
def test_connections_are_admitted_as_they_come(loop):
    async def body(ends):
        (control,) = ends.began
        for number in (1, 2, 3):
            give(control, number)
        await until(lambda: len(ends.admitted) == 3)
        give(control, 4)
        await until(lambda: len(ends.admitted) == 4)
        assert (list(ends.admitted), len(ends.began)) == (["c1", "c2", "c3", "c4"], 1)

    run(loop, body)


@LOOPS
@pytest.mark.parametrize("unread", [False, True])
def test_what_a_keeper_gave_before_it_died_is_heard(loop, unread):
    """With something unread of ours its end is an error on the socket, which comes first, and which libuv tells only once."""

    async def body(ends):
        (control,) = ends.began
        if unread:
            ends.keeper.ready()
        for number in (1, 2, 3):
            give(control, number)
        control.close()
        await until(lambda: len(ends.began) == 2)
        assert list(ends.admitted) == ["c1", "c2", "c3"]
        told = [socket.recv_fds(ends.began[1], 100, 1)[0] for _ in range(6)]
        assert {text.decode().split("FDNAME=")[1] for text in told} == {"c1", "j1", "c2", "j2", "c3", "j3"}

    run(loop, body)


@LOOPS
def test_what_it_gave_is_heard_when_its_death_is_found_out_by_saying_something(loop):
    async def body(ends):
        (control,) = ends.began
        for number in (1, 2):
            give(control, number)
        control.close()
        ends.on_admit = ends.keeper.ready
        ends.keeper.ready()
        assert (list(ends.admitted), len(ends.began)) == (["c1", "c2"], 2)
        told = [socket.recv_fds(ends.began[1], 100, 1)[0] for _ in range(4)]
        assert {text.decode().split("FDNAME=")[1] for text in told} == {"c1", "j1", "c2", "j2"}

    run(loop, body)


@LOOPS
def test_a_death_that_is_found_out_while_connections_are_admitted(loop):
    """Whatever that admission says fails; the next keeper is to have the connections after it as well."""

    async def body(ends):
        (control,) = ends.began
        for number in (1, 2):
            give(control, number)
        control.shutdown(socket.SHUT_RD)
        ends.on_admit = ends.keeper.ready
        await until(lambda: len(ends.admitted) == 2)
        assert len(ends.began) == 2
        told = [socket.recv_fds(ends.began[1], 100, 1)[0] for _ in range(4)]
        assert {text.decode().split("FDNAME=")[1] for text in told} == {"c1", "j1", "c2", "j2"}

    run(loop, body)


@LOOPS
def test_a_keeper_that_speaks_nonsense_is_replaced_once(loop):
    async def body(ends):
        give(ends.began[0], 1)
        ends.began[0].send(b"LISTEN_FDNAMES=c2:j2")
        ends.began[0].close()
        await until(lambda: len(ends.began) == 2)
        give(ends.began[1], 3)
        await until(lambda: "c3" in ends.admitted)
        assert (list(ends.admitted), len(ends.began)) == (["c1", "c3"], 2)

    run(loop, body)
