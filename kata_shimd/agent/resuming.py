"""The agent's client of a pod whose channel outlives its daemon.

What an earlier daemon had asked is answered as it was then. Must never happen: a step that an earlier daemon has taken fails
because it has been taken.
"""

import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, Final

from kata_shimd.agent.client import AgentClient, Deadlines
from kata_shimd.durable.channel import again
from kata_shimd.errors import AgentRefused, Code, ShimError
from kata_shimd.pod.values import Ended, Sandbox
from kata_shimd.ttrpc.client import Client

#: What the guest says when a step that is begun again has been taken already.
_TAKEN: Final = frozenset({Code.FAILED_PRECONDITION, Code.ALREADY_EXISTS})

#: Makes the client of a channel, which says when that is lost.
Connect = Callable[[socket.socket, Callable[[ShimError], None]], Client]


class ResumingAgent(AgentClient):
    """An agent's client whose calls outlive it, over a channel that does.

    A step that an earlier daemon may have taken, and that the guest says has been taken, has been taken."""

    def __init__(self, sock: socket.socket | None, deadlines: Deadlines, connect: Connect) -> None:
        self._connect_durably = connect
        super().__init__(sock, deadlines)

    def _connect(self, sock: socket.socket) -> Client:
        return self._connect_durably(sock, self._lost)

    def is_again(self) -> bool:
        return again.get()

    async def wait_process(self, container_id: str, exec_id: str, *, within: float | None = None) -> Ended:
        """An answer to an earlier daemon says how long ago the end was when it was given, and may have waited for us since. An
        agent that tells this at all answers more than once, so it is asked how long ago the end is by now."""
        ended = await super().wait_process(container_id, exec_id, within=within)
        if ended.at and ended.earlier:
            with suppress(ShimError):
                return await super().wait_process(container_id, exec_id, within=self._deadlines.usual)
        return ended

    async def start_container(self, container_id: str) -> None:
        await _or_taken(super().start_container(container_id))

    async def exec_process(self, container_id: str, exec_id: str, process: Mapping[str, Any]) -> None:
        await _or_taken(super().exec_process(container_id, exec_id, process))

    async def pause_container(self, container_id: str) -> None:
        await _or_taken(super().pause_container(container_id))

    async def resume_container(self, container_id: str) -> None:
        await _or_taken(super().resume_container(container_id))

    async def create_sandbox(self, sandbox: Sandbox) -> None:
        token = again.set(True)  # nobody but us makes it, so one that is there is ours
        try:
            await _or_taken(super().create_sandbox(sandbox))
        finally:
            again.reset(token)


async def _or_taken(step: Awaitable[None]) -> None:
    try:
        await step
    except AgentRefused as error:
        if not (again.get() and error.code in _TAKEN):
            raise
