"""The Task service: each RPC is decode, one call of the domain, encode. The same handlers answer v2 and v3.

The messages of the two versions are the same (`containerd.md` §2.1). Errors pass through; `boundary` maps them.
"""

import os
from collections.abc import Callable
from typing import Any

from kata_shimd.api import task, wkt
from kata_shimd.errors import Code, FailedPrecondition, NotFound, ShimError, Unimplemented
from kata_shimd.pod import spec as oci
from kata_shimd.pod.pod import Pod
from kata_shimd.pod.values import Snapshot
from kata_shimd.task import stats, translate


class TaskService:
    """containerd.task.v2.Task and containerd.task.v3.Task over one pod."""

    def __init__(self, pod: Pod) -> None:
        self._pod = pod

    def state(self, request: task.StateRequest) -> Snapshot:
        """From memory, whatever the guest does. Its encoding is `translate.state_bytes`."""
        return self._pod.container(request.id).snapshot(request.exec_id)

    async def create(self, request: task.CreateTaskRequest) -> task.CreateTaskResponse:
        if request.checkpoint:
            raise FailedPrecondition("create container", request.id, "a VM cannot restore a checkpoint")
        try:
            return task.CreateTaskResponse(pid=await self._pod.create(translate.create_spec(request)))
        except ShimError as error:
            raise _without_downgrade(error) from error

    async def start(self, request: task.StartRequest) -> task.StartResponse:
        return task.StartResponse(pid=await self._pod.start(request.id, request.exec_id))

    async def delete(self, request: task.DeleteRequest) -> task.DeleteResponse:
        if request.exec_id:
            pid, end = await self._pod.container(request.id).delete_exec(request.exec_id)
        else:
            pid, end = await self._pod.delete(request.id)
        return task.DeleteResponse(pid=pid, exit_status=end.status, exited_at=translate.timestamp(end))

    def pids(self, request: task.PidsRequest) -> task.PidsResponse:
        container = self._pod.container(request.id)
        running = [process.snapshot() for process in container.execs.values() if process.pid and not process.life.ended]
        return translate.process_infos([container.init.snapshot(), *running])

    async def pause(self, request: task.PauseRequest) -> wkt.Empty:
        await self._pod.container(request.id).pause()
        return wkt.Empty()

    async def resume(self, request: task.ResumeRequest) -> wkt.Empty:
        await self._pod.container(request.id).resume()
        return wkt.Empty()

    def checkpoint(self, request: task.CheckpointTaskRequest) -> wkt.Empty:
        self._pod.container(request.id)
        raise Unimplemented("checkpoint", request.id, "a container in a VM cannot be checkpointed")

    async def kill(self, request: task.KillRequest) -> wkt.Empty:
        await self._pod.kill(request.id, request.exec_id, request.signal, everyone=request.all)
        return wkt.Empty()

    async def exec(self, request: task.ExecProcessRequest) -> wkt.Empty:
        # An id that is used is told of before anything that is wrong with the process, as runc's shim does.
        self._pod.container(request.id).check_new_exec(request.exec_id)
        await self._pod.exec(translate.exec_spec(request))
        return wkt.Empty()

    async def resize_pty(self, request: task.ResizePtyRequest) -> wkt.Empty:
        process = self._pod.container(request.id).process(request.exec_id)
        await process.resize(rows=request.height, columns=request.width)
        return wkt.Empty()

    def close_io(self, request: task.CloseIoRequest) -> wkt.Empty:
        process = self._pod.container(request.id).process(request.exec_id)
        if request.stdin:
            process.close_stdin()
        return wkt.Empty()

    async def update(self, request: task.UpdateTaskRequest) -> wkt.Empty:
        self._pod.container(request.id)
        value = request.resources.value if request.resources is not None else b""
        resources = oci.parse_resources(value, request.id)
        await self._pod.update(request.id, resources)
        return wkt.Empty()

    async def wait(self, request: task.WaitRequest) -> task.WaitResponse:
        """Before or after Start, and until Delete: it blocks, and never fails for "not started"."""
        end = await self._pod.container(request.id).process(request.exec_id).wait()
        return task.WaitResponse(exit_status=end.status, exited_at=translate.timestamp(end))

    async def stats(self, request: task.StatsRequest) -> task.StatsResponse:
        return task.StatsResponse(stats=stats.metrics(await self._pod.stats(request.id)))

    def connect(self, request: task.ConnectRequest) -> task.ConnectResponse:
        """An unknown id is answered too, or containerd's reload fails (`containerd.md` §2.1)."""
        try:
            pid = self._pod.container(request.id).init.pid
        except NotFound:
            pid = 0
        return task.ConnectResponse(shim_pid=os.getpid(), task_pid=pid)

    def shutdown(self, request: task.ShutdownRequest) -> wkt.Empty:
        """A hint: containerd sends it after each task, the pod ends with its last one."""
        self._pod.shutdown()
        return wkt.Empty()


def _without_downgrade(error: ShimError) -> ShimError:
    """What Create answers: of a shim whose Create is Unimplemented, containerd 2.x thinks that it has no v3 and asks again."""
    if error.code is not Code.UNIMPLEMENTED:
        return error
    return FailedPrecondition(error.step, error.obj, error.cause, hint=error.hint)


def handlers(service: TaskService) -> dict[str, Callable[[Any], Any]]:
    """The service's methods by their name on the wire."""
    return {
        "State": service.state,
        "Create": service.create,
        "Start": service.start,
        "Delete": service.delete,
        "Pids": service.pids,
        "Pause": service.pause,
        "Resume": service.resume,
        "Checkpoint": service.checkpoint,
        "Kill": service.kill,
        "Exec": service.exec,
        "ResizePty": service.resize_pty,
        "CloseIO": service.close_io,
        "Update": service.update,
        "Wait": service.wait,
        "Stats": service.stats,
        "Connect": service.connect,
        "Shutdown": service.shutdown,
    }
