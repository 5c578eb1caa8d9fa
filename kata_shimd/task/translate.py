"""Between containerd's messages and the domain's values. Pure and total."""

from functools import lru_cache
from pathlib import Path
from typing import Any

from kata_shimd import wire
from kata_shimd.api import containerd_types, runc_options, task, task_types, wkt
from kata_shimd.api import events as pb
from kata_shimd.pod import events, spec
from kata_shimd.pod.lifecycle import State
from kata_shimd.pod.values import CreateSpec, ExecSpec, Exit, Mount, Snapshot, Stdio


def create_spec(request: task.CreateTaskRequest) -> CreateSpec:
    rootfs = tuple(Mount(m.type, m.source, tuple(m.options), m.target) for m in request.rootfs)
    stdio = Stdio(request.stdin, request.stdout, request.stderr, request.terminal)
    return CreateSpec(request.id, Path(request.bundle), rootfs, stdio)


def exec_spec(request: task.ExecProcessRequest) -> ExecSpec:
    """:raises InvalidArgument: the process is no OCI Process"""
    value = request.spec.value if request.spec is not None else b""
    process = spec.parse_process(value, f"{request.id}/{request.exec_id}")
    stdio = Stdio(request.stdin, request.stdout, request.stderr, request.terminal)
    return ExecSpec(request.id, request.exec_id, stdio, {**process, "terminal": request.terminal})


def timestamp(end: Exit | None) -> wkt.Timestamp | None:
    return wire.timestamp(end.at_ns) if end is not None else None


def state_response(snapshot: Snapshot) -> task.StateResponse:
    """runc's shim answers the process's id: the exec id for an exec (`containerd.md` §2.1)."""
    return task.StateResponse(
        id=snapshot.exec_id or snapshot.container_id,
        bundle=str(snapshot.bundle),
        pid=snapshot.pid,
        status=task_types.Status(snapshot.state.value) if snapshot.state is not State.DELETED else task_types.Status(0),
        stdin=snapshot.stdio.stdin,
        stdout=snapshot.stdio.stdout,
        stderr=snapshot.stdio.stderr,
        terminal=snapshot.stdio.terminal,
        exit_status=snapshot.exit.status if snapshot.exit else 0,
        exited_at=timestamp(snapshot.exit),
        exec_id=snapshot.exec_id,
    )


@lru_cache(maxsize=8)  # as many as a pod mostly has; what is kept of containers that have gone is soon past
def state_bytes(snapshot: Snapshot) -> bytes:
    """The answer to State on the wire: asked for again and again, mostly the same, and to encode it is most of the work."""
    return wire.encode(state_response(snapshot))


def process_infos(snapshots: list[Snapshot]) -> task.PidsResponse:
    """One entry a process, and always one: containerd takes an empty list for a leaked shim (`containerd.md` §1.9)."""
    return task.PidsResponse(processes=[_process_info(item) for item in snapshots])


def _process_info(snapshot: Snapshot) -> task_types.ProcessInfo:
    info = wire.pack_any(runc_options.ProcessDetails(exec_id=snapshot.exec_id)) if snapshot.exec_id else None
    return task_types.ProcessInfo(pid=snapshot.pid, info=info)


def event(value: events.Event) -> tuple[str, Any]:
    """The topic and the message of an event (`containerd.md` §1.11)."""
    match value:
        case events.Created():
            return "/tasks/create", pb.TaskCreate(
                container_id=value.container_id,
                bundle=str(value.bundle),
                rootfs=[_mount(mount) for mount in value.rootfs],
                io=_io(value.stdio),
                pid=value.pid,
            )
        case events.Started():
            return "/tasks/start", pb.TaskStart(container_id=value.container_id, pid=value.pid)
        case events.ExecAdded():
            return "/tasks/exec-added", pb.TaskExecAdded(container_id=value.container_id, exec_id=value.exec_id)
        case events.ExecStarted():
            return "/tasks/exec-started", pb.TaskExecStarted(
                container_id=value.container_id, exec_id=value.exec_id, pid=value.pid
            )
        case events.Exited():
            return "/tasks/exit", pb.TaskExit(
                container_id=value.container_id,
                id=value.process_id,
                pid=value.pid,
                exit_status=value.exit.status,
                exited_at=timestamp(value.exit),
            )
        case events.Deleted():
            return "/tasks/delete", pb.TaskDelete(
                container_id=value.container_id,
                pid=value.pid,
                exit_status=value.exit.status,
                exited_at=timestamp(value.exit),
                id=value.exec_id,
            )
        case events.Paused():
            return "/tasks/paused", pb.TaskPaused(container_id=value.container_id)
        case events.Resumed():
            return "/tasks/resumed", pb.TaskResumed(container_id=value.container_id)
        case events.OutOfMemory():
            return "/tasks/oom", pb.TaskOom(container_id=value.container_id)


def _mount(mount: Mount) -> containerd_types.Mount:
    return containerd_types.Mount(
        type=mount.type, source=mount.source, target=mount.target, options=list(mount.options)
    )


def _io(stdio: Stdio) -> pb.TaskIo:
    return pb.TaskIo(stdin=stdio.stdin, stdout=stdio.stdout, stderr=stdio.stderr, terminal=stdio.terminal)
