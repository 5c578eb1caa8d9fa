"""Exits and memory kills reach the journal, and every event its publisher."""

from pathlib import Path

import pytest

from kata_shimd.debug.record import RecordingPublisher
from kata_shimd.pod import events
from kata_shimd.pod.values import Exit, Stdio

EXIT = Exit(137, 5)
CASES = [
    (events.Created("c", Path("/b"), (), Stdio(), 7), ("created", {"container": "c", "pid": 7})),
    (events.Started("c", 7), ("started", {"container": "c"})),
    (events.Exited("c", "c", 7, EXIT), ("exited", {"container": "c", "exec": "", "status": 137})),
    (
        events.Exited("c", "c", 7, Exit(255, 1, "a lie")),
        ("exited", {"container": "c", "exec": "", "status": 255, "unknown": "a lie"}),
    ),
    (events.Exited("c", "e", 7, EXIT), ("exited", {"container": "c", "exec": "e", "status": 137})),
    (events.Deleted("c", "", 7, EXIT), ("deleted", {"container": "c"})),
    (events.Deleted("c", "e", 7, EXIT), None),
    (events.Paused("c"), ("paused", {"container": "c"})),
    (events.Resumed("c"), ("resumed", {"container": "c"})),
    (events.OutOfMemory("c"), ("oom", {"container": "c"})),
    (events.ExecAdded("c", "e"), None),
    (events.ExecStarted("c", "e", 7), None),
]


@pytest.mark.parametrize(("event", "noted"), CASES)
def test_event(event, noted):
    order = []

    class Publisher:
        def publish(self, event):
            order.append(event)

    RecordingPublisher(Publisher(), lambda name, **fields: order.append((name, fields))).publish(event)
    assert order == ([noted] if noted else []) + [event]


def test_every_kind_of_event_is_decided():
    assert {type(event) for event, _ in CASES} == set(events.Event.__args__)
