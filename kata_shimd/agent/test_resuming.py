"""What an agent's client of a later daemon makes of answers to an earlier one."""

import asyncio
import os
import socket
import time

import pytest

from kata_shimd import wire
from kata_shimd.agent.client import Deadlines
from kata_shimd.agent.resuming import ResumingAgent
from kata_shimd.api import agent as pb
from kata_shimd.durable.caller import DurableClient
from kata_shimd.durable.memory import new
from kata_shimd.durable.tape import HEAD, Tape
from kata_shimd.errors import Code
from kata_shimd.ttrpc.envelope import Response, Status, encode_response
from kata_shimd.ttrpc.frames import RESPONSE
from kata_shimd.ttrpc.testing import RawPeer

HOUR = 3600 * 10**9


class Line:
    """A channel, its journal, and the guest's end of it."""

    def __init__(self):
        self.ours, theirs = socket.socketpair()
        self.guest, self.journal = RawPeer(theirs), new(HEAD)
        self.clients = []

    def agent(self):
        """One more daemon's."""
        return ResumingAgent(self.ours.dup(), Deadlines(usual=0.05), self._connect)

    def _connect(self, sock, lost):
        self.clients.append(
            DurableClient(
                sock,
                Tape(os.dup(self.journal), point=lambda: None),
                barrier=lambda: None,
                key_of=lambda _method, payload: payload,
                consumed=(),
                on_lost=lost,
            )
        )
        return self.clients[-1]

    def die(self):
        """As SIGKILL: descriptors close, and nobody is told."""
        client = self.clients[-1]
        client._source.close()
        client._sink._idle()
        client._sock.close()

    async def answer(self, status, ago):
        """The guest's next answer."""
        frame = await self.guest.frame()
        await self.say(frame.stream, Response(None, wire.encode(pb.WaitProcessResponse(status=status, ago=ago))))

    async def say(self, stream, response):
        await self.guest.send((stream, RESPONSE, 0, encode_response(response)))


@pytest.fixture
async def line():
    made = Line()
    yield made
    for client in made.clients:
        client.close()
    made.guest.sock.close()
    made.ours.close()
    os.close(made.journal)


async def waited(line, ago):
    """A daemon that waits for the end of a process dies, and then the process."""
    first = line.agent()
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(first.wait_process("c", ""))
        frame = await line.guest.frame()
        line.die()
        waiting.cancel()
    await line.say(frame.stream, Response(None, wire.encode(pb.WaitProcessResponse(status=7, ago=ago))))


async def asking(line, *work):
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        ended = group.create_task(line.agent().wait_process("c", ""))
        for step in work:
            await step
    return ended.result()


def about(at, ago):
    return time.time_ns() - ago - 5 * 10**9 < at <= time.time_ns() - ago


async def test_how_long_ago_it_was_is_asked_when_the_answer_may_have_waited(line):
    await waited(line, ago=1)
    ended = await asking(line, line.answer(7, HOUR))
    assert ended == 7
    assert about(ended.at, HOUR)


async def test_a_daemon_that_asks_first_asks_once(line):
    ended = await asking(line, line.answer(7, HOUR))
    assert (ended, ended.earlier) == (7, False)
    assert about(ended.at, HOUR)
    assert line.clients[0]._highest == 1


async def test_an_agent_that_does_not_tell_is_not_asked_twice(line):
    """Kata's, which has forgotten the process by then."""
    await waited(line, ago=0)
    assert await asking(line) == 7
    assert line.clients[1]._highest == 1


@pytest.mark.parametrize("answer", ["refused", "never"])
async def test_what_was_told_once_stands(line, answer):
    async def refuse():
        frame = await line.guest.frame()
        await line.say(frame.stream, Response(Status(Code.NOT_FOUND, "it is forgotten", ())))

    await waited(line, ago=1)
    ended = await asking(line, refuse() if answer == "refused" else line.guest.frame())
    assert ended == 7
    assert about(ended.at, 0)
