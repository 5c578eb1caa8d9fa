"""Kill, which always works: a SIGKILL that the guest does not carry out ends the VM, and with it the process."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from kata_shimd.errors import DeadlineExceeded, NotFound, ShimError
from kata_shimd.pod.container import Container
from kata_shimd.pod.ports import Agent, Vm
from kata_shimd.pod.process import SIGKILL, Budgets, Process, is_gone
from kata_shimd.pod.watch import Note

_SENT: Final = "the agent sent SIGKILL, and the process lives on"


class Killer:
    """Sends signals to a pod's processes, and watches what comes of SIGKILL. ``booted`` gives the VM, or says why there is none."""

    def __init__(
        self, group: asyncio.TaskGroup, budgets: Budgets, note: Note, booted: Callable[[], Awaitable[tuple[Vm, Agent]]]
    ) -> None:
        self._group, self._budgets, self._note, self._booted = group, budgets, note, booted

    async def kill(self, container: Container, process: Process, number: int, *, everyone: bool) -> None:
        """Signal a process, with SIGKILL until it is dead.

        For an exec the VM ends only when nobody answers: what a guest refuses there, the container's SIGKILL still does.
        """
        try:
            await container.kill(process, number, everyone=everyone)
        except ShimError as error:
            await self._refused(process, number, error)
        else:
            if number == SIGKILL and not process.exec_id:
                self._watch(process, _SENT)

    async def _refused(self, process: Process, number: int, error: ShimError) -> None:
        if number != SIGKILL or process.life.ended or (process.exec_id and not is_gone(error)):
            raise error
        if is_gone(error):
            await self._escalate(process, str(error))
        elif isinstance(error, NotFound):
            self._watch(process, str(error))
            raise error
        else:
            await self._see_dead(process, str(error))

    def recall(self, process: Process) -> None:
        """Go on watching over the end of one that an earlier daemon had sent SIGKILL."""
        if process.killed and not process.life.ended:
            self._watch(process, _SENT)

    def _watch(self, process: Process, said: str) -> None:
        process.killed = True
        self._group.create_task(self._watch_death(process, said), name=f"see dead {process.container_id}")

    async def _watch_death(self, process: Process, said: str) -> None:
        try:
            await self._see_dead(process, said)
        except ShimError as error:
            self._note("kill-failed", container=process.container_id, exec=process.exec_id, error=str(error))

    async def _see_dead(self, process: Process, said: str) -> None:
        """Whatever the agent says to SIGKILL: init ends soon, or the guest is not to be trusted with it."""
        try:
            async with asyncio.timeout(self._budgets.kill):
                await process.wait()
        except TimeoutError:
            await self._escalate(process, said)

    async def _escalate(self, process: Process, why: str) -> None:
        """:raises DeadlineExceeded: not even QEMU's SIGKILL was carried out in time"""
        self._note("kill-escalated", container=process.container_id, exec=process.exec_id, error=why)
        vm, _ = await self._booted()
        vm.kill()
        try:
            async with asyncio.timeout(self._budgets.kill):
                await process.wait()
        except TimeoutError as error:
            raise DeadlineExceeded("kill", process.life.name, "QEMU has not ended after SIGKILL") from error
