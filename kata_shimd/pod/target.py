"""A container that is to see the processes of another, as `kubectl debug --target` makes one.

What containerd passes on of the target is a path by its pid on the host, which is QEMU's for every container, so that it looks as
if the pod's own namespace were meant. It is told from that by the pod's first container, for Kubernetes' pods share their
processes or do not: where that one has a PID namespace of its own, nothing but a target can be meant. Which, is known where there
is but one.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

from kata_shimd.errors import InvalidArgument, Unimplemented
from kata_shimd.pod import spec as oci
from kata_shimd.pod.container import Container
from kata_shimd.pod.lifecycle import State

#: Of the agent, that it knows `_PREFIX`.
FEATURE: Final = "kata-shimd.pid-of-container"
#: Before the id of a container, where a namespace's path would be.
_PREFIX: Final = "container:"
_ALIVE: Final = (State.RUNNING, State.PAUSED)
_STEP: Final = "join PID namespace"


class Agent(Protocol):
    """What has to be asked of the agent."""

    async def features(self) -> frozenset[str]: ...


async def of(container_id: str, spec: Mapping[str, Any], others: Iterable[Container], agent: Agent) -> str:
    """The id of the container whose processes this one is to see; empty when it is not about one.

    :raises Unimplemented: it may be any of several, or the agent cannot do it
    """
    if not oci.shares_pod_pid_namespace(spec):
        return ""
    alive = [one for one in others if one.init.life.state in _ALIVE]
    paths = {one.id: path for one in alive if (path := _pid_namespace(one.bundle)) is not None}
    if any([*paths.values()][:1]):
        return ""
    own = [name for name, path in paths.items() if not path]
    if len(own) > 1:
        why = f"it may be meant for any of {len(own)} containers: containerd names a process, and QEMU is that of all"
        raise Unimplemented(_STEP, container_id, why, hint="shareProcessNamespace shows the processes of all")
    if own and FEATURE not in await agent.features():
        raise Unimplemented(
            _STEP, container_id, f"the guest's agent cannot let it join {own[0]}", hint="run it without"
        )
    return own[0] if own else ""


def joining(guest: Mapping[str, Any], target: str) -> dict[str, Any]:
    """The guest's spec of a container that joins the target's PID namespace."""
    linux = guest["linux"]
    entry = {"type": "pid", "path": f"{_PREFIX}{target}"}
    return {**guest, "linux": {**linux, "namespaces": [*linux["namespaces"], entry]}}


def _pid_namespace(bundle: Path) -> str | None:
    """The path of the PID namespace of the container there, empty for one of its own; None when it is none of the pod's."""
    try:
        spec = oci.load(bundle)
        return oci.namespaces(spec).get("pid") if oci.kind(spec) is oci.Kind.CONTAINER else None
    except InvalidArgument:
        return None  # it is being taken away, and is no target
