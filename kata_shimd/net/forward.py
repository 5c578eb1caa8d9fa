"""`kubectl port-forward`: a connection to the loopback of the pod's network namespace goes on to the loopback in the guest.

containerd enters the namespace on the host and connects there, where none of the pod's processes is (`users.md`). Who is connected
to is told by the kernel (`steer`); the way into the guest is an exec of the pod's pause, `/pause connect PORT`, which the agent of
the guest built here does itself. Another agent does not say that it can, and connections are reset as if nobody listened.
"""

import asyncio
import itertools
import logging
import os
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final

from kata_shimd import supervise
from kata_shimd.errors import ShimError
from kata_shimd.net import steer
from kata_shimd.net.namespace import Namespace
from kata_shimd.pod.network import ConnectAgent, ForwardRecord

_log = logging.getLogger(__name__)

#: What an agent must say that it can.
FEATURE: Final = "kata-shimd.connect"
#: Connections at once; those that come later wait.
MOST: Final = 64
#: Seconds that the guest's side has for its end when the client sends no more. containerd gives it one, and does not say when a
#: client has gone: this keeps connections from being held for ever.
LINGER: Final = 10.0
_READ: Final = 64 << 10
_SIGKILL: Final = 9
#: SO_LINGER on, for no time: a close is a reset.
_RESET: Final = struct.pack("ii", 1, 0)

Note = Callable[..., None]


async def forward(
    space: Namespace, agent: ConnectAgent, sandbox_id: str, note: Note, record: ForwardRecord | None = None
) -> None:
    """Serve the namespace's loopback until cancelled. A kernel that cannot is noted, and the pod is without port-forward.

    With a ``record`` a later daemon ends in the guest what this one leaves there: its connections die with it.
    """
    try:
        steered = await space.run(partial(steer.steer, space.fileno()))
    except ShimError as error:
        note("forward-failed", error=str(error))
        return
    try:
        async with asyncio.TaskGroup() as group:
            forwarder = Forwarder(agent, sandbox_id, note, record=record)
            for name in record.forwards() if record is not None else ():
                group.create_task(forwarder.forget(name), name="forwarded before")
            for listener in steered.listeners:
                group.create_task(forwarder.serve(listener, group), name="forward")
    finally:
        steered.close()


class Forwarder:
    """Carries connections into the guest."""

    def __init__(
        self,
        agent: ConnectAgent,
        sandbox_id: str,
        note: Note,
        *,
        linger: float = LINGER,
        record: ForwardRecord | None = None,
    ) -> None:
        self._agent, self._sandbox_id, self._note, self._linger = agent, sandbox_id, note, linger
        self._record = record
        # An earlier daemon's calls would be taken for ours, were their names the same.
        self._names = (f"forward-{os.getpid()}-{number}" for number in itertools.count(1))
        self._room = asyncio.Semaphore(MOST)
        self._loop = asyncio.get_running_loop()

    async def serve(self, listener: socket.socket, group: asyncio.TaskGroup) -> None:
        """Take connections until cancelled; one that cannot be taken, for want of descriptors, is the last of this listener."""
        while True:
            await self._room.acquire()
            try:
                connection, _ = await self._loop.sock_accept(listener)
            except OSError as error:
                self._note("forward-failed", error=f"take connections: {error.strerror}")
                return
            group.create_task(self._serve(connection), name="forwarded connection")

    async def _serve(self, connection: socket.socket) -> None:
        try:
            if not await self._carry(connection):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        except (ShimError, OSError) as error:
            _log.info("a forwarded connection of %s: %s", self._sandbox_id, error)
        finally:
            connection.close()
            self._room.release()

    async def _carry(self, connection: socket.socket) -> bool:
        """Whether somebody in the guest took the connection."""
        if FEATURE not in await self._agent.features():
            return False
        name = next(self._names)
        self._note_down(name, there=True)
        try:
            return await self._carry_by(name, connection)
        except asyncio.CancelledError:
            name = ""  # the daemon ends, and the exec does not
            raise
        finally:
            if name:
                self._note_down(name, there=False)

    async def _carry_by(self, name: str, connection: socket.socket) -> bool:
        words = ["/pause", "connect", str(steer.port(connection))]
        await self._agent.exec_process(self._sandbox_id, name, {"args": words, "cwd": "/"})
        try:
            await supervise.first_of(self._down(connection, name), self._up(connection, name))
        except OSError:
            await self._end(name)
            raise
        return await self._agent.wait_process(self._sandbox_id, name) == 0

    async def forget(self, name: str) -> None:
        """End in the guest what an earlier daemon's connection has left there."""
        await self._end(name)
        with suppress(ShimError):  # it may never have been begun
            await self._agent.wait_process(self._sandbox_id, name)
        self._note_down(name, there=False)

    def _note_down(self, name: str, *, there: bool) -> None:
        if self._record is not None:
            self._record.record_forward(name, there=there)

    async def _up(self, connection: socket.socket, name: str) -> None:
        """From the client into the guest. A client that has gone ends the other direction too."""
        with suppress(ShimError, OSError):
            while data := await self._loop.sock_recv(connection, _READ):
                while data:
                    data = data[await self._agent.write_stdin(self._sandbox_id, name, data) :]
            await self._agent.close_stdin(self._sandbox_id, name)
            await asyncio.sleep(self._linger)
        await self._end(name)

    async def _down(self, connection: socket.socket, name: str) -> None:
        while data := await self._agent.read_stdout(self._sandbox_id, name, _READ):
            await self._loop.sock_sendall(connection, data)

    async def _end(self, name: str) -> None:
        """The client has gone away, and left a connection in the guest."""
        try:
            await self._agent.signal_process(self._sandbox_id, name, _SIGKILL)
        except ShimError as error:
            _log.debug("%s: %s", name, error)
