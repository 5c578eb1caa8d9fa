"""The tables that the ttrpc server serves: the Task service under both its names, and our own.

Which method runs where is one table here: what answers from memory runs inside the reader, what changes something runs to its
end although its caller may go.
"""

from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, Final

from kata_shimd import log, wire
from kata_shimd.api.descriptors import ServiceDescriptor
from kata_shimd.api.services import pod as pod_rpcs
from kata_shimd.api.services import task_v2, task_v3
from kata_shimd.task import translate
from kata_shimd.task.abandon import Abandonment
from kata_shimd.task.service import TaskService, handlers
from kata_shimd.ttrpc import Call, Method, Service

#: Answered from memory, inside the reader.
IMMEDIATE: Final = frozenset({"State", "Pids", "Connect", "CloseIO", "Checkpoint", "Shutdown", "Describe"})
#: Half done, these must be finished or undone, never cancelled with the caller that asked.
DETACHED: Final = frozenset({"Create", "Start", "Delete", "Exec", "Kill", "Pause", "Resume", "Update", "Upgrade"})

#: Answers that are not messages yet.
_ENCODERS: Final[Mapping[str, Callable[[Any], bytes]]] = {"State": translate.state_bytes}

#: Methods of `kata_shimd.v1.Pod` besides Abandon.
Own = Mapping[str, Callable[[Any], Any]]


def services(service: TaskService, abandonment: Abandonment, own: Own) -> Iterator[Service]:
    """containerd's Task service v2 and v3, and `kata_shimd.v1.Pod` for the launcher and the command for people."""
    methods = handlers(service)
    for descriptor in (task_v2.SERVICE, task_v3.SERVICE):
        yield _service(descriptor, methods, abandonment.seen, {"Create": partial(_create, service.create, abandonment)})
    special = {name: partial(_plain, method) for name, method in own.items()}
    yield _service(pod_rpcs.SERVICE, {"Abandon": abandonment.abandon}, lambda _connection, _id: None, special)


def _service(
    descriptor: ServiceDescriptor,
    methods: Mapping[str, Callable[[Any], Any]],
    seen: Callable[[str, str], None],
    special: Mapping[str, Callable[[Call, Any], Any]] = MappingProxyType({}),
) -> Service:
    table: dict[str, Method[Any, Any]] = {}
    for rpc in descriptor:
        table[rpc.name] = Method(
            handler=special.get(rpc.name) or partial(_handle, methods[rpc.name], seen),
            decode=partial(wire.decode, rpc.request),
            encode=_ENCODERS.get(rpc.name, wire.encode),
            immediate=rpc.name in IMMEDIATE,
            detached=rpc.name in DETACHED,
        )
    return Service(descriptor.name, table)


def _handle(method: Callable[[Any], Any], seen: Callable[[str, str], None], call: Call, request: Any) -> Any:
    """Every request of the Task service names its container first: stamp the log with it, and note who spoke of it."""
    log.container.set(request.id)
    seen(call.connection, request.id)
    return method(request)


def _plain(method: Callable[[Any], Any], _call: Call, request: Any) -> Any:
    return method(request)


async def _create(method: Callable[[Any], Awaitable[Any]], abandonment: Abandonment, call: Call, request: Any) -> Any:
    """As `_handle`, and known to be under way."""
    with abandonment.creating(call.connection, request.id):
        return await _handle(method, abandonment.seen, call, request)
