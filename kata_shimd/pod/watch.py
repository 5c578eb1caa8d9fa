"""What watches a running VM from outside its containers: is the agent there, does it answer, did the guest run out of memory."""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from kata_shimd.errors import ShimError
from kata_shimd.pod import events
from kata_shimd.pod.pace import Pace
from kata_shimd.pod.ports import Agent, Publisher, Vm
from kata_shimd.pod.process import Budgets

_log = logging.getLogger(__name__)

#: Memory events a guest may tell at once, and seconds for each one more: a flood of them would push exits out of the queue.
OOM_BURST: Final = 64
OOM_SECONDS: Final = 1.0

#: Writes to the journal: an event's name, and its fields.
Note = Callable[..., None]


class Watch:
    """Three tasks as long as the VM lives. An agent that is lost, or silent, is a lost VM: it is ended, and every exit told."""

    def __init__(self, vm: Vm, agent: Agent, publisher: Publisher, budgets: Budgets, note: Note) -> None:
        self._vm, self._agent, self._publisher = vm, agent, publisher
        self._budgets, self._note = budgets, note

    def begin(
        self, group: asyncio.TaskGroup, *, ending: Callable[[], bool], knows: Callable[[str], bool]
    ) -> list[asyncio.Task[None]]:
        """``ending`` says whether the VM is being ended on purpose, ``knows`` whether a container is of this pod."""
        return [
            group.create_task(self._answers(ending), name="watch agent"),
            group.create_task(self._connected(ending), name="watch channel"),
            group.create_task(self._memory(knows), name="watch memory"),
        ]

    async def _answers(self, ending: Callable[[], bool]) -> None:
        try:
            while True:
                await asyncio.sleep(self._budgets.health_interval)
                await self._agent.check()
        except ShimError as error:
            await self._lose(str(error), ending)

    async def _connected(self, ending: Callable[[], bool]) -> None:
        """A channel that ends before anybody ends the VM is told at once: whoever stops the pod for it may come before `_lose`."""
        cause = await self._agent.gone()
        if not ending():
            self._note("channel-lost", error=cause)
        await self._lose(cause, ending)

    async def _lose(self, cause: str, ending: Callable[[], bool]) -> None:
        """The channel goes with the VM, and is seen to go first: a VM that ends by itself now is the cause, not the effect."""
        try:
            async with asyncio.timeout(self._budgets.follows):
                await self._vm.wait()
        except TimeoutError:
            if not ending():
                self._note("agent-lost", error=cause)
                self._vm.kill()

    async def _memory(self, knows: Callable[[str], bool]) -> None:
        pace = Pace(OOM_BURST, OOM_SECONDS)
        try:
            while True:
                await pace.turn()
                container_id = await self._agent.oom_event()
                if knows(container_id):
                    self._publisher.publish(events.OutOfMemory(container_id))
        except ShimError as error:
            _log.debug("no more memory events: %s", error)
