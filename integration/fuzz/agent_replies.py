"""Fuzz of the agent's replies: every RPC of the client, over a real connection whose far end answers as it likes.

    python -m integration.fuzz.agent_replies [--count 1000000] [--seed 1]

Permitted: `AgentRefused`, whatever the guest says; nothing else, as the domain's port promises. Also required: numbers are in
range, data is not longer than asked for, counters can be told to containerd, the connection lives on.
"""

import asyncio
import random
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from integration.fuzz import mutate
from integration.fuzz.engine import Target, main
from integration.fuzz.messages import some_message
from kata_shimd import wire
from kata_shimd.agent.client import AgentClient, Deadlines
from kata_shimd.api import agent as pb
from kata_shimd.api import task, wkt
from kata_shimd.errors import AgentRefused
from kata_shimd.pod.values import Sandbox
from kata_shimd.task import stats
from kata_shimd.ttrpc.envelope import Response, Status, encode_response
from kata_shimd.ttrpc.frames import RESPONSE
from kata_shimd.ttrpc.testing import RawPeer

_ASKED: Final = 64
_SANDBOX: Final = Sandbox("sandbox", "host")
_SPEC: Final = {"process": {"args": ["a"], "cwd": "/"}}
Call = Callable[[AgentClient], Awaitable[Any]]


def _in_range(low: int, high: int) -> Callable[[Any], None]:
    def look(answer: Any) -> None:
        assert low <= answer <= high, f"{answer} is not in {low}-{high}"

    return look


def _ended(answer: Any) -> None:
    _in_range(0, 255)(answer)
    assert answer.at <= time.time_ns(), "it has ended, and that lies in the future"


def _short(answer: Any) -> None:
    assert len(answer) <= _ASKED, f"{len(answer)} bytes, {_ASKED} were asked for"


def _told(answer: Any) -> None:
    """On hosts with either version of cgroups."""
    for unified in (False, True):
        wire.encode(task.StatsResponse(stats=stats.metrics(answer, unified=unified)))


def _anything(_answer: Any) -> None:
    return None


#: Each call with the class of its reply and what must be true of its result.
CALLS: Final[tuple[tuple[Call, type[Any], Callable[[Any], None]], ...]] = (
    (lambda agent: agent.check(), pb.HealthCheckResponse, _anything),
    (lambda agent: agent.details(), pb.GuestDetailsResponse, _anything),
    (lambda agent: agent.create_sandbox(_SANDBOX), wkt.Empty, _anything),
    (lambda agent: agent.destroy_sandbox(), wkt.Empty, _anything),
    (lambda agent: agent.create_container("c", _SPEC, (), sandbox_pidns=False), wkt.Empty, _anything),
    (lambda agent: agent.start_container("c"), wkt.Empty, _anything),
    (lambda agent: agent.remove_container("c"), wkt.Empty, _anything),
    (lambda agent: agent.exec_process("c", "e", _SPEC["process"]), wkt.Empty, _anything),
    (lambda agent: agent.signal_process("c", "", 9), wkt.Empty, _anything),
    (lambda agent: agent.wait_process("c", ""), pb.WaitProcessResponse, _ended),
    (lambda agent: agent.read_stdout("c", "", _ASKED), pb.ReadStreamResponse, _short),
    (lambda agent: agent.read_stderr("c", "", _ASKED), pb.ReadStreamResponse, _short),
    (lambda agent: agent.write_stdin("c", "", b"abc"), pb.WriteStreamResponse, _in_range(1, 3)),
    (lambda agent: agent.close_stdin("c", ""), wkt.Empty, _anything),
    (lambda agent: agent.resize("c", "", rows=1, columns=1), wkt.Empty, _anything),
    (lambda agent: agent.pause_container("c"), wkt.Empty, _anything),
    (lambda agent: agent.resume_container("c"), wkt.Empty, _anything),
    (lambda agent: agent.update_container("c", {}), wkt.Empty, _anything),
    (lambda agent: agent.stats_container("c"), pb.StatsContainerResponse, _told),
    (lambda agent: agent.oom_event(), pb.OomEvent, _anything),
)
Input = tuple[int, bytes]


def make(rng: random.Random) -> Input:
    """A call by its number, and the envelope that answers it."""
    number = rng.randrange(len(CALLS)) if rng.random() < 0.7 else 18
    payload = mutate.data(rng, some_message(rng, CALLS[number][1], depth=-2))
    if rng.random() < 0.1:
        status = Status(rng.choice((0, 1, 5, 13, 16, 17, 2**31 - 1)), rng.choice(("", "no\x1b[2J", "x" * 5000)), ())
        return number, encode_response(Response(status, payload))
    envelope = encode_response(Response(None, payload))
    return number, mutate.data(rng, envelope) if rng.random() < 0.1 else envelope


async def check(agent: AgentClient, peer: RawPeer, given: Input) -> None:
    number, envelope = given
    call, _, look = CALLS[number]
    try:
        async with asyncio.TaskGroup() as group:
            calling = group.create_task(_outcome(call(agent)))
            frame = await peer.frame()
            await peer.send((frame.stream, RESPONSE, 0, envelope))
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    answer = calling.result()
    if isinstance(answer, AgentRefused):
        raise answer
    look(answer)


async def _outcome(answer: Awaitable[Any]) -> Any:
    """The refusal as a value: it must not cancel the peer."""
    try:
        return await answer
    except AgentRefused as error:
        return error


@contextmanager
def opened() -> Iterator[Callable[[Any], None]]:
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        ours, theirs = socket.socketpair()
        agent = runner.run(_client(ours))
        peer = RawPeer(theirs)
        try:
            yield lambda given: loop.run_until_complete(check(agent, peer, given))
        finally:
            runner.run(_closed(agent))
            theirs.close()


async def _client(sock: socket.socket) -> AgentClient:
    return AgentClient(sock, Deadlines(check=10, create_sandbox=10, create_container=10, usual=10))


async def _closed(agent: AgentClient) -> None:
    """What the loop has still to do for it is done when its runner ends."""
    agent.close()


TARGET: Final = Target("agent_replies", (AgentRefused,), make, opened)

if __name__ == "__main__":
    main(TARGET)
