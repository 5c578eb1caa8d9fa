"""Containers that containerd has given up.

containerd runs ``delete`` whenever it drops a task: after a normal deletion, and when it could not reach us. In the second
case nobody will
ever ask for the container again, so it is ours to remove; but a ``delete`` run by hand beside a healthy pod must do no harm. The
difference: while a connection that spoke of the container is open, containerd still has it.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable

from kata_shimd.api import pod as pb
from kata_shimd.api import wkt

_log = logging.getLogger(__name__)


class Abandonment:
    """Knows which connection spoke of which container, and which containers `delete` was run for."""

    def __init__(self, group: asyncio.TaskGroup, remove: Callable[[str], Awaitable[None]]) -> None:
        self._group, self._remove = group, remove
        self._spoken: defaultdict[str, set[str]] = defaultdict(set)
        self._given_up: set[str] = set()

    def seen(self, connection: str, container_id: str) -> None:
        """containerd spoke of a container on a connection."""
        self._spoken[connection].add(container_id)
        self._given_up.discard(container_id)

    def lost(self, connection: str) -> None:
        """A connection ended; what it alone spoke of, and `delete` was run for, is removed."""
        spoken = self._spoken.pop(connection, set())
        for container_id in spoken & self._given_up:
            self._consider(container_id)

    def abandon(self, request: pb.AbandonRequest) -> wkt.Empty:
        """`delete` was run for a container while we live."""
        self._given_up.add(request.id)
        self._consider(request.id)
        return wkt.Empty()

    def _consider(self, container_id: str) -> None:
        if any(container_id in spoken for spoken in self._spoken.values()):
            _log.info("delete was run for %s, which containerd still holds: left alone", container_id)
            return
        self._given_up.discard(container_id)
        self._group.create_task(self._run(container_id), name=f"abandoned {container_id}")

    async def _run(self, container_id: str) -> None:
        await self._remove(container_id)
