"""Events arrive in order, once each, through a containerd that is away, restarts, or refuses one."""

import asyncio
import socket
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from kata_shimd import wire
from kata_shimd.api import events as pb
from kata_shimd.api import forward, wkt
from kata_shimd.api.services import events as rpcs
from kata_shimd.errors import InvalidArgument
from kata_shimd.pod import events
from kata_shimd.pod.testing import until
from kata_shimd.pod.values import Exit, Mount, Stdio
from kata_shimd.task import publisher as module
from kata_shimd.task.publisher import EventPublisher
from kata_shimd.ttrpc import Method, Server, Service


class Containerd:
    """Takes events on a socket; ``refuse`` topics are answered InvalidArgument."""

    def __init__(self, path) -> None:
        self.path, self.envelopes, self.refuse = path, [], set()

    @property
    def topics(self):
        return [envelope.topic for envelope in self.envelopes]

    async def _forward(self, _call, request):
        if request.envelope.topic in self.refuse:
            raise InvalidArgument("forward", request.envelope.topic, "no")
        self.envelopes.append(request.envelope)
        return wkt.Empty()

    @asynccontextmanager
    async def up(self):
        self.path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.path))
        listener.listen()
        method = Method(handler=self._forward, decode=partial(wire.decode, forward.ForwardRequest), encode=wire.encode)
        async with Server(listener, [Service(rpcs.SERVICE.name, {"Forward": method})], drain_budget=0):
            yield self
        listener.close()


@pytest.fixture
def containerd(tmp_path):
    return Containerd(tmp_path / "c.sock")


@asynccontextmanager
async def publishing(containerd):
    class Done(Exception):
        pass

    publisher = EventPublisher(str(containerd.path), "ns", attempt=5)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(publisher.run())
            yield publisher
            raise Done
    except* Done:
        pass


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "RETRY_SECONDS", (0.001, 0.01))


async def test_events_arrive_in_order_with_time_and_namespace(containerd):
    async with containerd.up(), publishing(containerd) as publisher:
        publisher.publish(events.Started("c", 7))
        publisher.publish(events.Exited("c", "c", 7, Exit(3, 1_000_000_001)))
        await publisher.drained.wait()
    assert containerd.topics == ["/tasks/start", "/tasks/exit"]
    envelope = containerd.envelopes[1]
    assert envelope.namespace == "ns" and envelope.timestamp.seconds > 0
    exit_ = wire.unpack(envelope.event, pb.TaskExit)
    assert (exit_.exit_status, exit_.exited_at.seconds, exit_.exited_at.nanos) == (3, 1, 1)
    assert envelope.event.type_url == "containerd.events.TaskExit"


async def test_containerd_comes_late_and_restarts(containerd):
    async with publishing(containerd) as publisher:
        publisher.publish(events.Started("a", 1))
        await asyncio.sleep(0.02)
        async with containerd.up():
            await publisher.drained.wait()
        publisher.publish(events.Started("b", 1))
        publisher.publish(events.Paused("b"))
        await asyncio.sleep(0.02)
        async with containerd.up():
            await publisher.drained.wait()
    assert containerd.topics == ["/tasks/start", "/tasks/start", "/tasks/paused"]


async def test_a_refused_event_does_not_hold_up_the_others(containerd):
    containerd.refuse.add("/tasks/start")
    async with containerd.up(), publishing(containerd) as publisher:
        publisher.publish(events.Started("c", 1))
        publisher.publish(events.Resumed("c"))
        await publisher.drained.wait()
    assert containerd.topics == ["/tasks/resumed"]


async def test_nowhere_to_publish_is_no_failure():
    publisher = EventPublisher("", "ns", attempt=5)
    publisher.publish(events.Started("c", 1))
    assert publisher.drained.is_set()


ALL = [
    (events.Created("c", Path("/b"), (Mount("overlay", "o", ("x",), "/t"),), Stdio("i", "o", "e", True), 5), "/tasks/create"),
    (events.Started("c", 5), "/tasks/start"),
    (events.ExecAdded("c", "e"), "/tasks/exec-added"),
    (events.ExecStarted("c", "e", 5), "/tasks/exec-started"),
    (events.Exited("c", "e", 5, Exit(1, 2)), "/tasks/exit"),
    (events.Deleted("c", "", 5, Exit(1, 2)), "/tasks/delete"),
    (events.Paused("c"), "/tasks/paused"),
    (events.Resumed("c"), "/tasks/resumed"),
    (events.OutOfMemory("c"), "/tasks/oom"),
]  # fmt: skip


async def test_every_event_has_its_topic(containerd):
    async with containerd.up(), publishing(containerd) as publisher:
        for event, _ in ALL:
            publisher.publish(event)
        await until(lambda: len(containerd.envelopes) == len(ALL))
    assert containerd.topics == [topic for _, topic in ALL]
