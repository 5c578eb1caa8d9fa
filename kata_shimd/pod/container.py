"""A container: its init process, its execs, and the order in which they end."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from kata_shimd.errors import AgentRefused, AlreadyExists, Code, FailedPrecondition, NotFound, ShimError
from kata_shimd.pod import events
from kata_shimd.pod.lifecycle import Do, State
from kata_shimd.pod.ports import Agent, Publisher, Streams
from kata_shimd.pod.process import SIGKILL, Budgets, Process
from kata_shimd.pod.spec import process_for_guest
from kata_shimd.pod.values import ExecSpec, Exit, Snapshot, Stdio, check_id

_log = logging.getLogger(__name__)


class Container:
    """One container of the pod. `on_init_exit` is called after its exit has been published."""

    def __init__(
        self,
        container_id: str,
        bundle: Path,
        stdio: Stdio,
        *,
        agent: Agent,
        streams: Streams,
        publisher: Publisher,
        group: asyncio.TaskGroup,
        budgets: Budgets,
        pid: int,
        on_init_exit: Callable[["Container"], None],
    ) -> None:
        self.id, self.bundle = container_id, bundle
        self._agent, self._streams, self._publisher = agent, streams, publisher
        self._group, self._budgets, self._pid = group, budgets, pid
        self._on_init_exit = on_init_exit
        self.init = Process(agent, container_id, "", bundle, stdio, budgets)
        self.init.pid = pid
        self.execs: dict[str, Process] = {}
        self.exec_specs: dict[str, Mapping[str, Any]] = {}
        #: Of the spec's resources, what its control group has by the file's name.
        self.unified: Mapping[str, Any] = {}
        #: The last counters of the guest's; Stats answers them after the end.
        self.last_stats: Any = None

    def process(self, exec_id: str) -> Process:
        """:raises NotFound: no such exec"""
        if not exec_id:
            return self.init
        if exec_id not in self.execs:
            raise NotFound("look up exec", f"{self.id}/{exec_id}", "no such exec")
        return self.execs[exec_id]

    def processes(self) -> Iterator[Process]:
        yield self.init
        yield from self.execs.values()

    def snapshot(self, exec_id: str) -> Snapshot:
        """What State answers. A pause holds every live process of the container, whatever was asked of which.

        :raises NotFound: no such exec
        """
        process = self.process(exec_id)
        if self.init.life.state is State.PAUSED and not process.life.ended:
            return replace(process.snapshot(), state=State.PAUSED)
        return process.snapshot()

    # --- init ----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start init: events are in order, for its end is followed only after its start has been told."""
        async with self.init.turn:
            self.init.life.check(Do.START)
            self.init.begins()
            await self._agent.start_container(self.id)
            self.init.life.commit(Do.START)
            self._publisher.publish(events.Started(self.id, self._pid))
            self.init.follow(self._group, self._process_exited)

    async def pause(self) -> None:
        async with self.init.turn:
            self.init.life.check(Do.PAUSE)
            await self._agent.pause_container(self.id)
            self.init.life.commit(Do.PAUSE)
            self._publisher.publish(events.Paused(self.id))

    async def resume(self) -> None:
        async with self.init.turn:
            self.init.life.check(Do.RESUME)
            await self._agent.resume_container(self.id)
            self.init.life.commit(Do.RESUME)
            self._publisher.publish(events.Resumed(self.id))

    async def remove_from_guest(self) -> None:
        """Let the guest forget it; what it no longer knows, or no longer can, does not hold up a Delete."""
        try:
            await self._agent.remove_container(self.id)
        except ShimError as error:
            _log.info("the guest did not remove %s: %s", self.id, error)

    async def finish(self) -> None:
        """Close every stream of every process, handing over what their readers still take."""
        async with asyncio.TaskGroup() as group:
            for process in self.processes():
                group.create_task(process.finish_streams(), name=f"finish {process.life.name}")

    # --- execs ---------------------------------------------------------------------------------------------------

    def check_new_exec(self, exec_id: str) -> None:
        """:raises AlreadyExists: the id is used"""
        check_id("exec id", exec_id)
        if exec_id in self.execs:
            raise AlreadyExists("exec", f"{self.id}/{exec_id}", "this exec id is used")

    def add_exec(self, spec: ExecSpec) -> None:
        """Register an exec; the guest hears of it at its Start.

        :raises AlreadyExists: the id is used
        :raises FailedPrecondition: init is not running
        """
        self.check_new_exec(spec.exec_id)
        if self.init.life.state is not State.RUNNING:
            state = self.init.life.state.name.lower()
            raise FailedPrecondition("exec", f"{self.id}/{spec.exec_id}", f"the container is {state}")
        process = Process(self._agent, self.id, spec.exec_id, self.bundle, spec.stdio, self._budgets)
        self.execs[spec.exec_id] = process
        self.exec_specs[spec.exec_id] = process_for_guest(spec.process)
        self._publisher.publish(events.ExecAdded(self.id, spec.exec_id))

    async def start_exec(self, exec_id: str) -> int:
        """Run it in the guest. A command that cannot be run fails here, with what the guest says of it."""
        process = self.process(exec_id)
        async with process.turn:
            process.life.check(Do.START)
            if self.init.life.state is not State.RUNNING:
                raise FailedPrecondition("start exec", process.life.name, "the container is not running")
            await process.open_streams(self._streams)
            await self._exec(process)
            process.pid = self._pid
            process.life.commit(Do.START)
            self._publisher.publish(events.ExecStarted(self.id, exec_id, self._pid))
            process.follow(self._group, self._process_exited)
        return process.pid

    async def _exec(self, process: Process) -> None:
        process.begins()
        try:
            await self._agent.exec_process(self.id, process.exec_id, self.exec_specs[process.exec_id])
        except ShimError:
            await process.finish_streams()
            raise

    async def undo_start_exec(self, exec_id: str) -> None:
        """A Start that is refused although an earlier daemon may have done half of it, or all: nothing runs, no stream is open."""
        process = self.execs.get(exec_id)
        if process is None or process.life.state is not State.CREATED:
            return
        async with process.turn:
            with suppress(ShimError):
                await self._agent.signal_process(self.id, exec_id, SIGKILL)
            await process.take_up_streams(self._streams)
            await process.finish_streams()

    async def delete_exec(self, exec_id: str) -> tuple[int, Exit]:
        """Forget an exec; its pid is 0 when it was never started.

        :raises FailedPrecondition: it runs
        """
        process = self.process(exec_id)
        async with process.turn:
            process.life.check(Do.DELETE)
            await process.finish_streams()
            process.life.commit(Do.DELETE)
            del self.execs[exec_id], self.exec_specs[exec_id]
        return process.pid, process.exit or Exit(0, 0)

    # --- an earlier daemon's ---------------------------------------------------------------------------------------

    def recall_exec(self, exec_id: str, stdio: Stdio, spec: Mapping[str, Any]) -> Process:
        process = Process(self._agent, self.id, exec_id, self.bundle, stdio, self._budgets)
        self.execs[exec_id], self.exec_specs[exec_id] = process, spec
        return process

    async def take_up(self) -> None:
        """Take up the lives of all processes that an earlier daemon followed."""
        for process in tuple(self.processes()):
            await process.take_up(self._streams, self._group, self._process_exited)

    # --- ends ----------------------------------------------------------------------------------------------------

    async def kill(self, process: Process, number: int, *, everyone: bool) -> None:
        """Signal a process; of a container's init every exec too when ``everyone``.

        To the agent no exec id is the whole container with SIGKILL, and init alone with any other signal (`kata.md` §2.4).
        """
        await process.signal(number)
        if everyone and process is self.init and number != SIGKILL:
            await self._signal_execs(number)
        if process.life.state is State.CREATED:
            process.follow(self._group, self._process_exited)

    async def _signal_execs(self, number: int) -> None:
        for process in [
            one for one in self.execs.values() if not one.life.ended and one.life.state is not State.CREATED
        ]:
            with suppress(NotFound):  # it ends just now
                await process.signal(number)

    async def _process_exited(self, process: Process, exit_: Exit) -> None:
        if process is self.init:
            await self._end_execs()
            await self._take_last_stats()
        self._publish_exit(process, exit_)

    async def _end_execs(self) -> None:
        """Init is gone: whatever still runs in its namespaces is killed, and told before init."""
        running = [process for process in self.execs.values() if process.life.state is State.RUNNING]
        if not running:
            return
        try:
            await self._agent.signal_process(self.id, "", SIGKILL)
        except AgentRefused as error:
            if error.code is not Code.NOT_FOUND:
                _log.warning("%s: its remaining processes could not be killed: %s", self.id, error)
        except ShimError as error:
            _log.warning("%s: its remaining processes could not be killed: %s", self.id, error)
        try:
            async with asyncio.timeout(self._budgets.execs_end):
                for process in running:
                    await process.wait()
        except TimeoutError:
            _log.warning("%s: an exec outlived its container's init", self.id)

    async def _take_last_stats(self) -> None:
        """CRI tells OOMKilled from counters asked for after the end (`containerd.md` §2.5)."""
        try:
            async with asyncio.timeout(self._budgets.last_stats):
                self.last_stats = await self._agent.stats_container(self.id)
        except (ShimError, TimeoutError) as error:
            _log.debug("no last counters of %s: %s", self.id, error)

    def _publish_exit(self, process: Process, exit_: Exit) -> None:
        if not process.set_exit(exit_):
            return
        self._publisher.publish(events.Exited(self.id, process.process_id, self._pid, exit_))
        if process is self.init:
            self._on_init_exit(self)

    def end_unstarted(self) -> None:
        """Deleted before its Start: who waits for its end, or watches over its death, hears of one by SIGKILL."""
        exit_ = Exit(128 + SIGKILL, time.time_ns())
        if self.init.life.state is State.CREATED and self.init.set_exit(exit_):
            self._publisher.publish(events.Exited(self.id, self.id, self._pid, exit_))

    def lose(self, exit_: Exit) -> None:
        """The VM is gone: every live process ends now, init last. An exec never started stays, as it never ran."""
        for process in self.execs.values():
            if process.life.state is State.RUNNING:
                self._publish_exit(process, exit_)
        self._publish_exit(self.init, exit_)
