"""A stand-in for containerd: takes the shims' events and keeps them in order, by container."""

import asyncio
import socket
from collections import defaultdict
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from kata_shimd import wire
from kata_shimd.api import events, forward
from kata_shimd.api.services import events as rpcs
from kata_shimd.ttrpc import Call, Method, Server, Service

MESSAGES: Final[dict[str, Any]] = {
    "/tasks/create": events.TaskCreate,
    "/tasks/start": events.TaskStart,
    "/tasks/exit": events.TaskExit,
    "/tasks/delete": events.TaskDelete,
    "/tasks/exec-added": events.TaskExecAdded,
    "/tasks/exec-started": events.TaskExecStarted,
    "/tasks/oom": events.TaskOom,
    "/tasks/paused": events.TaskPaused,
    "/tasks/resumed": events.TaskResumed,
    "/tasks/checkpointed": events.TaskCheckpointed,
}


@dataclass(frozen=True, slots=True)
class Event:
    """One event as it came; ``fields`` are the message's own."""

    topic: str
    fields: dict[str, Any]


class Recorder:
    """Listens where a shim finds its TTRPC_ADDRESS. Use as ``async with``."""

    def __init__(self, address: Path) -> None:
        self._address = address
        self._changed = asyncio.Event()
        self._open = AsyncExitStack()
        self.seen: defaultdict[str, list[Event]] = defaultdict(list)

    async def __aenter__(self) -> Self:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._open.callback(listener.close)
        listener.bind(str(self._address))
        listener.listen()
        method: Method[forward.ForwardRequest, bytes] = Method(
            handler=self._take,
            decode=lambda data: wire.decode(forward.ForwardRequest, data),
            encode=bytes,
            immediate=True,
        )
        service = Service(rpcs.SERVICE.name, {rpcs.FORWARD.name: method})
        await self._open.enter_async_context(Server(listener, [service], drain_budget=0))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._open.aclose()
        self._address.unlink(missing_ok=True)

    def of(self, container_id: str) -> list[Event]:
        return list(self.seen[container_id])

    async def until(self, wanted: Callable[[], bool]) -> None:
        """Wait for as long as it takes; bound it with asyncio.timeout."""
        while not wanted():
            self._changed.clear()
            await self._changed.wait()

    def _take(self, _call: Call, request: forward.ForwardRequest) -> bytes:
        envelope = request.envelope
        assert envelope is not None and envelope.event is not None
        message = wire.unpack(envelope.event, MESSAGES[envelope.topic])
        values = {
            field.name: getattr(message, field.name) for field in fields(message) if not field.name.startswith("_")
        }
        self.seen[values["container_id"]].append(Event(envelope.topic, values))
        self._changed.set()
        return b""
