"""Writes what the pod tells containerd into the journal as well, so that `why` knows exits and memory kills.

Stands before the publisher: a port in front of the same port. Execs are recorded by their exit only: probes would fill the
journal.
"""

from collections.abc import Callable
from typing import Any

from kata_shimd.pod import events
from kata_shimd.pod.ports import Publisher
from kata_shimd.pod.values import Exit


class RecordingPublisher:
    """`Publisher`: notes an event, then publishes it."""

    def __init__(self, publisher: Publisher, note: Callable[..., None]) -> None:
        self._publisher, self._note = publisher, note

    def publish(self, event: events.Event) -> None:
        name, fields = _entry(event)
        if name:
            self._note(name, **fields)
        self._publisher.publish(event)


def _entry(event: events.Event) -> tuple[str, dict[str, Any]]:
    """The journal's name and fields for an event; no name for one that is not recorded."""
    match event:
        case events.Created(container_id=container, pid=pid):
            return "created", {"container": container, "pid": pid}
        case events.Started(container_id=container):
            return "started", {"container": container}
        case events.Exited(container_id=container, process_id=process, exit=end):
            return "exited", {"container": container, "exec": "" if process == container else process} | _end(end)
        case events.Deleted(container_id=container, exec_id=""):
            return "deleted", {"container": container}
        case events.Paused(container_id=container):
            return "paused", {"container": container}
        case events.Resumed(container_id=container):
            return "resumed", {"container": container}
        case events.OutOfMemory(container_id=container):
            return "oom", {"container": container}
        case _:
            return "", {}


def _end(end: Exit) -> dict[str, Any]:
    return {"status": end.status, "unknown": end.unknown} if end.unknown else {"status": end.status}
