"""The pod: one VM, its containers, and the end of both.

The VM is begun at once, before containerd asks for anything; a failed boot is remembered and answered by Create. What the pod
put on the host is the ledger's; the pod only decides when.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from kata_shimd.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ShimError,
    Unavailable,
    VmFailed,
)
from kata_shimd.pod import events, memory, storage, target
from kata_shimd.pod import spec as oci
from kata_shimd.pod.container import Container
from kata_shimd.pod.kill import Killer
from kata_shimd.pod.lifecycle import Do
from kata_shimd.pod.ports import Agent, South, Vm
from kata_shimd.pod.process import SIGKILL, Budgets
from kata_shimd.pod.values import LOST, CreateSpec, ExecSpec, Exit, Stdio, VmExit, check_id
from kata_shimd.pod.watch import Note, Watch

_log = logging.getLogger(__name__)


class Pod:
    """One pod. Its tasks live in ``group``; ``note`` writes to the journal."""

    def __init__(
        self,
        south: South,
        group: asyncio.TaskGroup,
        budgets: Budgets,
        *,
        note: Note,
        on_stopping: Callable[[], None] = lambda: None,
        guest_seccomp: bool = True,
    ) -> None:
        self._south, self._group, self._budgets, self._note, self._guest_seccomp = (
            south,
            group,
            budgets,
            note,
            guest_seccomp,
        )
        self._on_stopping = on_stopping
        self.containers: dict[str, Container] = {}
        self._creating: dict[str, asyncio.Event] = {}
        #: Of those, the ones that nobody waits for any more.
        self._unwanted: set[str] = set()
        self._running: asyncio.Future[tuple[Vm, Agent]] = asyncio.get_running_loop().create_future()
        self.vm_exit: VmExit | None = None
        self.stopping, self._vm_ended = asyncio.Event(), asyncio.Event()
        self._created_once = False
        self._expiry: asyncio.TimerHandle | None = None
        self._main, self._ending = "", False
        self._stop: asyncio.Task[None] | None = None
        self._killer = Killer(group, budgets, note, self.booted)

    # --- the VM --------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Begin the boot, and with it everything that watches the VM."""
        self._boot = self._group.create_task(self._live(), name="vm")
        self._expire_after(self._budgets.create_wait)

    async def _live(self) -> None:
        try:
            vm, agent = await self._south.vmm.boot()
        except ShimError as error:
            self._note("boot-failed", error=str(error))
            self._running.set_exception(error)
            self._running.exception()  # it may never be asked for
            self._lose_restored(error)
            return
        self._running.set_result((vm, agent))
        if self._main in self.containers and self.containers[self._main].init.life.ended:
            self._begin_stop()  # an earlier daemon had told its end, and died before the VM's
        watch = Watch(vm, agent, self._south.publisher, self._budgets, self._note)
        watches = watch.begin(self._group, ending=lambda: self._ending, knows=self.containers.__contains__)
        try:
            self._lose(await vm.wait())
        finally:
            for task in watches:
                task.cancel()

    def _lose(self, end: VmExit) -> None:
        self.vm_exit = end
        self._note("vm-ended", cause=end.cause, expected=self._ending, **end.detail)
        for container in tuple(self.containers.values()):
            container.lose(Exit(LOST, end.at_ns))
        self._vm_ended.set()

    def restore(self, memories: Mapping[str, Mapping[str, Any]], agent: Agent) -> None:
        """Before `begin`: be the pod that an earlier daemon left. ``memories``: containers, in the order they were created."""
        for container_id, past in memories.items():
            request = CreateSpec(container_id, memory.bundle(past), (), memory.stdio(past["init"]))
            container = self._container(request, past["init"]["pid"], agent)
            memory.recall(container, past)
            self.containers[container_id] = container
            self._killer.recall(container.init)
            self._group.create_task(container.take_up(), name=f"take up {container_id}")
            self._main = self._main or container_id
            self._created_once = True

    def _lose_restored(self, error: ShimError) -> None:
        """There is no VM to go on with: what ran in it has ended. A pod that never had one has nothing to lose."""
        if self.containers:
            self._lose(VmExit(str(error), time.time_ns()))
        self._vm_ended.set()

    def _expire_after(self, seconds: float) -> None:
        """A pod nobody creates anything in removes itself."""
        if self._expiry is not None:
            self._expiry.cancel()
        self._expiry = asyncio.get_running_loop().call_later(seconds, self._expire, seconds)

    def _expire(self, seconds: float) -> None:
        if not self._created_once:
            self._note("expired", seconds=seconds)
            self.stop()

    async def booted(self) -> tuple[Vm, Agent]:
        """The running VM, or why there is none.

        :raises VmFailed: the boot failed, or the VM has ended since
        """
        running = await asyncio.shield(self._running)
        if self.vm_exit is not None:
            raise VmFailed("use VM", "", self.vm_exit.cause, hint="see kata-shimd why")
        return running

    @property
    def vm_pid(self) -> int:
        """QEMU's pid, or 0 before there is one."""
        if self._running.done() and not self._running.cancelled() and self._running.exception() is None:
            return self._running.result()[0].pid
        return 0

    # --- containers ----------------------------------------------------------------------------------------------

    def container(self, container_id: str) -> Container:
        """:raises NotFound: no such container"""
        if (found := self.containers.get(container_id)) is None:
            raise NotFound("look up container", container_id, "no such container")
        return found

    async def create(self, request: CreateSpec) -> int:
        """Create a container: share its files, make it in the guest. A failure leaves nothing of it.

        :returns: QEMU's pid
        :raises AlreadyExists, InvalidArgument, VmFailed, HostFailed, AgentRefused: with step, object, cause
        """
        self._created_once = True
        self._check_new(request.container_id)
        self._creating[request.container_id] = asyncio.Event()
        try:
            container = await self._create(request)
        finally:
            self._created(request.container_id)
        self.containers[container.id] = container
        self._main = self._main or container.id
        if self._vm_ended.is_set():
            container.lose(Exit(LOST, time.time_ns()))
            raise VmFailed("create container", container.id, self.vm_exit.cause if self.vm_exit else "the VM has ended")
        self._south.publisher.publish(
            events.Created(container.id, request.bundle, request.rootfs, request.stdio, container.init.pid)
        )
        return container.init.pid

    def _created(self, container_id: str) -> None:
        """Create is over. One that nobody waited for has been undone, and with it goes a pod that has nothing else."""
        self._creating.pop(container_id).set()
        if container_id in self._unwanted:
            self._unwanted.remove(container_id)
            self.shutdown()

    def _check_new(self, container_id: str) -> None:
        check_id("container id", container_id)
        if self.stopping.is_set():
            raise FailedPrecondition("create container", container_id, "the pod is stopping")
        if container_id in self.containers or container_id in self._creating:
            raise AlreadyExists("create container", container_id, "this container id is used")

    async def _create(self, request: CreateSpec) -> Container:
        spec = oci.load(request.bundle)
        self._check_kind(request.container_id, oci.kind(spec))
        if spec.get("process") is None:
            raise InvalidArgument("read config.json", str(request.bundle), "it has no process")
        directory = self._south.host.directory(request.container_id)
        plan = storage.plan(directory, request.bundle, spec, request.rootfs)
        guest = oci.for_guest(spec, request.container_id, plan, seccomp=self._guest_seccomp)
        vm, agent = await self.booted()
        async with self._blaming_vm("create container", request.container_id):
            joined = await target.of(request.container_id, spec, [*self.containers.values()], agent)
        guest = target.joining(guest, joined) if joined else guest
        shares = oci.shares_pod_pid_namespace(spec) and not joined
        container = self._container(request, vm.pid, agent)
        container.unified = oci.unified((spec.get("linux") or {}).get("resources") or {})
        try:
            await container.init.open_streams(self._south.streams)
            await self._share(request.container_id, plan)
            async with self._blaming_vm("create container", container.id):
                await agent.create_container(request.container_id, guest, (), sandbox_pidns=shares)
            if container.id in self._unwanted:
                raise Unavailable("create container", container.id, "containerd has gone, or given it up, meanwhile")
        except BaseException:
            await self._undo_create(container)
            raise
        return container

    @asynccontextmanager
    async def _blaming_vm(self, step: str, name: str) -> AsyncIterator[None]:
        """The channel goes with the VM, and is seen to go first: of a VM that ends now, its end is the cause.

        Half as long as `Watch` waits for the same, or a VM that is ended for its agent would be blamed.

        :raises VmFailed: that cause, instead of an error which only says that the agent was not reached
        """
        try:
            yield
        except Unavailable as error:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._budgets.follows / 2):
                    await self._vm_ended.wait()
            if self.vm_exit is not None and not self._ending:
                raise VmFailed(step, name, self.vm_exit.cause, hint="see kata-shimd why") from error
            raise

    def _check_kind(self, container_id: str, kind: oci.Kind) -> None:
        """Exactly one container makes the pod, the first; the others say they belong to it."""
        if kind is not oci.Kind.CONTAINER and self._main:
            raise InvalidArgument("create container", container_id, f"the pod has its {kind.value} container already")

    def _container(self, request: CreateSpec, pid: int, agent: Agent) -> Container:
        return Container(
            request.container_id,
            request.bundle,
            request.stdio,
            agent=agent,
            streams=self._south.streams,
            publisher=self._south.publisher,
            group=self._group,
            budgets=self._budgets,
            pid=pid,
            on_init_exit=self._init_exited,
        )

    async def _share(self, container_id: str, plan: storage.Plan) -> None:
        await self._south.host.share_rootfs(container_id, plan.rootfs)
        for share in plan.shares:
            await self._south.host.share(container_id, share)

    async def _undo_create(self, container: Container) -> None:
        await container.finish()
        await container.remove_from_guest()
        try:
            await self._south.host.undo_container(container.id)
        except ShimError as error:
            self._note("undo-failed", container=container.id, error=str(error))

    async def delete(self, container_id: str) -> tuple[int, Exit]:
        """Remove a container that has ended, or was never started.

        :raises FailedPrecondition: it runs
        :raises HostFailed: something on the host would not go; Delete may be asked again
        """
        container = self.container(container_id)
        async with container.init.turn:
            container.init.life.check(Do.DELETE)
            container.end_unstarted()
            await container.finish()
            await self._south.streams.settle(container_id)
            if self.vm_exit is None and not self._is_last(container):
                await container.remove_from_guest()
            await self._south.host.undo_container(container_id)
            container.init.life.commit(Do.DELETE)
            del self.containers[container_id]
        end = container.init.exit or Exit(0, 0)
        self._south.publisher.publish(events.Deleted(container_id, "", container.init.pid, end))
        return container.init.pid, end

    def _is_last(self, container: Container) -> bool:
        """The VM goes with it, so the guest need not be asked to forget it."""
        return len(self.containers) == 1 and self.containers.get(container.id) is container

    async def exec(self, spec: ExecSpec) -> None:
        self.container(spec.container_id).add_exec(spec)

    async def start(self, container_id: str, exec_id: str) -> int:
        container = self.container(container_id)
        if exec_id:
            async with self._blaming_vm("start exec", f"{container_id}/{exec_id}"):
                return await container.start_exec(exec_id)
        async with self._blaming_vm("start container", container_id):
            await container.start()
        return container.init.pid

    async def kill(self, container_id: str, exec_id: str, number: int, *, everyone: bool) -> None:
        """Signal a process; see `kill.Killer`.

        :raises NotFound: no such process, or it has ended
        """
        container = self.container(container_id)
        await self._killer.kill(container, container.process(exec_id), number, everyone=everyone)

    async def update(self, container_id: str, resources: Mapping[str, Any]) -> None:
        """Change a live container's limits in the guest.

        :raises FailedPrecondition: it has ended
        """
        container = self.container(container_id)
        if container.init.life.ended:
            raise FailedPrecondition("update", container_id, "it is stopped")
        _, agent = await self.booted()
        changes = oci.changes(resources, container.unified)
        async with self._blaming_vm("update", container_id):
            await agent.update_container(container_id, oci.resources_for_guest(changes))

    async def stats(self, container_id: str) -> Any:
        """The guest's counters; for a container that has ended, the last that were taken (`containerd.md` §2.5)."""
        container = self.container(container_id)
        if container.init.life.ended:
            if container.last_stats is None:
                raise NotFound("stats", container_id, "no counters were taken before it ended")
            return container.last_stats
        _, agent = await self.booted()
        async with self._blaming_vm("stats", container_id):
            container.last_stats = await agent.stats_container(container_id)
        return container.last_stats

    async def finish_abandoning(self, container_id: str) -> None:
        """As `abandon`, for one that an earlier daemon had begun to remove, perhaps half made."""
        if container_id not in self.containers and container_id not in self._creating:
            self._creating[container_id] = asyncio.Event()
            try:
                _, agent = await self.booted()
                await self._south.streams.settle(container_id)
                await self._undo_create(self._container(CreateSpec(container_id, Path(), (), Stdio()), 0, agent))
            except ShimError as error:
                self._note("abandon-failed", container=container_id, error=str(error))
            finally:
                self._created(container_id)
        await self.abandon(container_id)

    async def abandon(self, container_id: str) -> None:
        """containerd has given the container up: end and remove it, and the pod with its last one.

        One that is still being created is undone when it is (`users.md` §1, 5). One that never was ends a pod without others.
        """
        if (over := self._creating.get(container_id)) is not None:
            self._note("abandoned", container=container_id)
            self._unwanted.add(container_id)
            await over.wait()
            return
        if container_id not in self.containers:
            if self._created_once:
                self.shutdown()
            else:  # not at once: a `delete` for an earlier pod of this name may come late
                self._expire_after(self._budgets.abandoned_wait)
            return
        self._note("abandoned", container=container_id)
        container = self.containers[container_id]
        try:
            if not container.init.life.ended:
                await self.kill(container_id, "", SIGKILL, everyone=True)
                await container.init.wait()
            await self.delete(container_id)
        except ShimError as error:
            self._note("abandon-failed", container=container_id, error=str(error))
        if not self.containers:
            self.stop()

    # --- the end -------------------------------------------------------------------------------------------------

    def _init_exited(self, container: Container) -> None:
        """The pod ends with the container that made it; its exit has been told by now."""
        if container.id == self._main and not self._vm_ended.is_set():
            self._begin_stop()

    def _begin_stop(self) -> asyncio.Task[None]:
        if self._stop is None:
            self._stop = self._group.create_task(self._stop_vm(), name="stop vm")
        return self._stop

    async def stop_vm(self) -> None:
        """End the guest and the VM, once, whoever asks."""
        await asyncio.shield(self._begin_stop())

    async def _stop_vm(self) -> None:
        """End the guest and the VM within a budget. The ledger ends what is left, and a boot that is still under way."""
        if not self._running.done():
            self._running.set_exception(FailedPrecondition("boot VM", "", "the pod was stopped while it booted"))
            self._running.exception()
            self._boot.cancel()
            return
        try:
            vm, agent = await self.booted()
        except ShimError:
            return
        self._ending = True
        try:
            async with asyncio.timeout(self._budgets.stop):
                await agent.destroy_sandbox()
        except (ShimError, TimeoutError) as error:
            self._note("destroy-sandbox-failed", error=str(error))
        await vm.stop()
        await self._vm_ended.wait()

    def shutdown(self) -> bool:
        """Shutdown of a task is a hint: the pod ends when no container is left. Says whether it does."""
        if self.containers or self._creating:
            return False
        self.stop()
        return True

    def stop(self) -> None:
        """The pod ends. It is on record before anyone is told, for `delete` follows on the heels of Shutdown's reply; a record that
        cannot be written, because the disk is full, does not keep it alive.
        """
        if self.stopping.is_set():
            return
        try:
            self._on_stopping()
        except ShimError as error:
            self._note("stop-not-recorded", error=str(error))
        self.stopping.set()

    def report(self) -> Mapping[str, Any]:
        """What there is, for people: the REPL, `why`, logs."""
        return {
            "vm": self.vm_pid,
            "vm_exit": self.vm_exit,
            "stopping": self.stopping.is_set(),
            "containers": {name: [p.snapshot() for p in c.processes()] for name, c in self.containers.items()},
        }
