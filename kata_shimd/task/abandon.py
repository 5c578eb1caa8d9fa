"""Containers that containerd has given up.

containerd runs ``delete`` whenever it drops a task: after a normal deletion, and when it could not reach us. In the second
case nobody will
ever ask for the container again, so it is ours to remove; but a ``delete`` run by hand beside a healthy pod must do no harm. The
difference: while a connection that spoke of the container is open, containerd still has it.

A Create whose connection ends before it is answered is given up without a word: whoever comes next asks for the container, is
told that there is none, and never asks again.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

from kata_shimd.api import pod as pb
from kata_shimd.api import wkt

_log = logging.getLogger(__name__)


class Abandonment:
    """Knows which connection spoke of which container, and which containers `delete` was run for."""

    def __init__(
        self,
        group: asyncio.TaskGroup,
        remove: Callable[[str], Awaitable[None]],
        *,
        spoken: Mapping[str, Iterable[str]] = MappingProxyType({}),
        record: Callable[[str, Collection[str]], None] = lambda _connection, _ids: None,
        given_up: Iterable[str] = (),
        record_given_up: Callable[[Collection[str]], None] = lambda _ids: None,
        record_removing: Callable[[Collection[str]], None] = lambda _ids: None,
    ) -> None:
        """``spoken`` is what an earlier daemon has recorded: containers by connection; ``record`` is told what there is to add.
        The same of containers that were ``given_up``; of those whose removal has begun, see `finish`.
        """
        self._group, self._remove, self._record = group, remove, record
        self._spoken: defaultdict[str, set[str]] = defaultdict(set)
        self._spoken.update((connection, set(ids)) for connection, ids in spoken.items())
        self._given_up = set(given_up)
        self._record_given_up, self._record_removing = record_given_up, record_removing
        self._removing: set[str] = set()
        #: Containers whose Create is under way, by the connection that waits for it.
        self._creating: defaultdict[str, set[str]] = defaultdict(set)

    def seen(self, connection: str, container_id: str) -> None:
        """containerd spoke of a container on a connection."""
        if container_id not in self._spoken[connection]:
            self._spoken[connection].add(container_id)
            self._record(connection, self._spoken[connection])
        self._give_up(container_id, up=False)

    def _give_up(self, container_id: str, *, up: bool) -> None:
        if up != (container_id in self._given_up):
            self._given_up ^= {container_id}
            self._record_given_up(self._given_up)

    @contextmanager
    def creating(self, connection: str, container_id: str) -> Iterator[None]:
        """Stands round a Create, for as long as somebody waits for its answer."""
        self._creating[connection].add(container_id)
        try:
            yield
        finally:
            self._creating[connection].discard(container_id)
            if not self._creating[connection]:
                del self._creating[connection]

    def lost(self, connection: str) -> None:
        """A connection ended: what was being created for it is removed, and what it alone spoke of and `delete` was run for."""
        for container_id in self._creating.get(connection, ()):
            self._begin(container_id)
        spoken = self._spoken.pop(connection, set())
        self._record(connection, ())
        for container_id in spoken & self._given_up:
            self._consider(container_id)

    def abandon(self, request: pb.AbandonRequest) -> wkt.Empty:
        """`delete` was run for a container while we live."""
        self._give_up(request.id, up=True)
        self._consider(request.id)
        return wkt.Empty()

    def _consider(self, container_id: str) -> None:
        if any(container_id in spoken for spoken in self._spoken.values()):
            _log.info("delete was run for %s, which containerd still holds: left alone", container_id)
            return
        self._begin(container_id)
        self._give_up(container_id, up=False)

    def finish(self, removing: Iterable[str], remove: Callable[[str], Awaitable[None]]) -> None:
        """Go on with removals that an earlier daemon had begun."""
        for container_id in tuple(removing):
            self._begin(container_id, remove)

    def _begin(self, container_id: str, remove: Callable[[str], Awaitable[None]] | None = None) -> None:
        """On record first: when it has begun, nobody will ask for it again."""
        self._removing.add(container_id)
        self._record_removing(self._removing)
        self._group.create_task(self._run(container_id, remove or self._remove), name=f"abandoned {container_id}")

    async def _run(self, container_id: str, remove: Callable[[str], Awaitable[None]]) -> None:
        await remove(container_id)
        self._removing.discard(container_id)
        self._record_removing(self._removing)
