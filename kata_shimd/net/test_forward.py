"""Connections that are steered and carried, with a guest made of queues; a real one is in `integration/cri/test_forward.py`."""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from kata_shimd.errors import AgentRefused, Code, Unavailable
from kata_shimd.net import forward, steer
from kata_shimd.net.forward import FEATURE, Forwarder

PATIENCE = 10.0


class Guest:
    """Echoes what it is sent, until it is told that no more comes, or killed."""

    def __init__(self, *, features: frozenset[str] = frozenset({FEATURE}), status: int = 0) -> None:
        self._features, self._status = features, status
        self.started: list[tuple[str, ...]] = []
        self.killed: list[str] = []
        self.deaf = False
        self._streams: dict[str, asyncio.Queue[bytes]] = {}

    async def features(self) -> frozenset[str]:
        return self._features

    async def exec_process(self, container_id, exec_id, process) -> None:
        self.started.append((container_id, *process["args"]))
        self._streams[exec_id] = asyncio.Queue()
        if self._status:
            self._streams[exec_id].put_nowait(b"")

    async def signal_process(self, container_id, exec_id, signal) -> None:
        self.killed.append(exec_id)
        self._streams[exec_id].put_nowait(b"")

    async def wait_process(self, container_id, exec_id) -> int:
        return 137 if exec_id in self.killed else self._status

    async def read_stdout(self, container_id, exec_id, length) -> bytes:
        return await self._streams[exec_id].get()

    async def write_stdin(self, container_id, exec_id, data) -> int:
        """Takes a part only, as the real one may."""
        part = data[:3]
        self._streams[exec_id].put_nowait(part)
        return len(part)

    async def close_stdin(self, container_id, exec_id) -> None:
        if not self.deaf:
            self._streams[exec_id].put_nowait(b"")


@asynccontextmanager
async def serving(guest: Guest, **how: Any) -> AsyncIterator[tuple[int, list[str]]]:
    """A forwarder behind a listener of the test's; its port, and what it noted."""
    noted: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        forwarder = Forwarder(guest, "s1", lambda event, **fields: noted.append(event), **how)
        with suppress(asyncio.CancelledError):
            async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
                task = group.create_task(forwarder.serve(listener, group))
                yield listener.getsockname()[1], noted
                task.cancel()


async def test_both_directions_and_their_ends() -> None:
    guest = Guest()
    async with serving(guest) as (port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"hello, guest")
        assert await reader.readexactly(12) == b"hello, guest"
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()
    assert guest.started == [("s1", "/pause", "connect", str(port))]
    assert guest.killed == []


@pytest.mark.parametrize("guest", [{"features": frozenset()}, {"status": 1}], ids=["another agent", "nobody listens"])
async def test_a_connection_that_nobody_takes_is_reset(guest: dict[str, object]) -> None:
    async with serving(Guest(**guest)) as (port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()


async def test_a_client_that_has_gone_is_not_waited_for() -> None:
    """The guest's server takes no notice of its end."""
    guest = Guest()
    guest.deaf = True
    async with serving(guest, linger=0.01) as (port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write_eof()
        with suppress(ConnectionResetError):
            await reader.read()
        writer.close()
    assert guest.killed == [f"forward-{os.getpid()}-1"]


class Record(dict[str, bool]):
    """What is kept for a later daemon."""

    def forwards(self) -> list[str]:
        return list(self)

    def record_forward(self, name: str, *, there: bool) -> None:
        if there:
            self[name] = True
        else:
            del self[name]


async def test_a_connection_is_on_record_as_long_as_it_is_there() -> None:
    guest, record = Guest(), Record()
    async with serving(guest, record=record) as (port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
        assert record == {f"forward-{os.getpid()}-1": True}
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()
    assert record == {}


async def test_a_daemon_that_ends_leaves_its_connections_on_record() -> None:
    guest, record = Guest(), Record()
    async with serving(guest, record=record) as (port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
        for task in asyncio.all_tasks():
            if task.get_name() == "forwarded connection":
                task.cancel()
        assert await reader.read() == b""
        writer.close()
    assert record == {f"forward-{os.getpid()}-1": True}


async def test_what_an_earlier_daemon_left_in_the_guest_is_ended() -> None:
    """Also where the guest knows nothing of it, as its daemon died before it had asked."""
    guest, record = Guest(), Record({"forward-7-1": True, "forward-7-2": True})
    await guest.exec_process("s1", "forward-7-1", {"args": ["/pause", "connect", "80"]})
    unknown = AgentRefused("SignalProcess", "s1", Code.NOT_FOUND, "no such exec")

    async def signal(container_id: str, exec_id: str, number: int) -> None:
        if exec_id == "forward-7-2":
            raise unknown
        guest.killed.append(exec_id)

    guest.signal_process = signal  # type: ignore[method-assign]
    forwarder = Forwarder(guest, "s1", lambda event, **fields: None, record=record)
    for name in record.forwards():
        await forwarder.forget(name)
    assert (guest.killed, record) == (["forward-7-1"], {})


@pytest.mark.parametrize(
    "error", [Unavailable("call", "", "gone"), AgentRefused("ExecProcess", "s1", Code.INTERNAL, "no")]
)
async def test_a_guest_that_fails_costs_one_connection(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    guest = Guest()

    async def fail(*_: object) -> None:
        raise error

    async with serving(guest) as (port, _):
        with monkeypatch.context() as broken:
            broken.setattr(guest, "exec_process", fail)
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            assert await reader.read() == b""
            writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"ok")
        assert await reader.readexactly(2) == b"ok"
        writer.close()


async def test_as_many_at_once_as_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more waits until another has ended."""
    monkeypatch.setattr(forward, "MOST", 2)
    guest = Guest()
    async with serving(guest) as (port, _):
        opened = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        for reader, writer in opened[:2]:
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
        assert len(guest.started) == 2
        opened[0][1].write_eof()
        opened[2][1].write(b"x")
        assert await opened[2][0].readexactly(1) == b"x"
        for _, writer in opened:
            writer.close()


#: Run in a new network namespace, where every port is free.
STEER = """
import os, socket
from kata_shimd.net import steer
steered = steer.steer(os.open("/proc/self/ns/net", os.O_RDONLY))
for listener, address in zip(steered.listeners, ("127.0.0.1", "::1"), strict=True):
    for port in (1, 8080, 65535):
        with socket.create_connection((address, port), 5):
            listener.setblocking(True)
            assert steer.port(listener.accept()[0]) == port
for address in ("127.0.0.2", "10.9.9.9"):
    try:
        socket.create_connection((address, 80), 5)
    except ConnectionRefusedError:
        continue
    raise SystemExit(f"{address} was taken")
steered.close()
try:
    socket.create_connection(("127.0.0.1", 8080), 5)
except ConnectionRefusedError:
    print("well")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: a network namespace, and a program of the kernel's")
def test_every_port_of_the_loopback_and_nothing_else() -> None:
    script = 'ip link set lo up; ip addr add 10.9.9.9/32 dev lo; exec "$0" -c "$1"'
    done = subprocess.run(
        ["unshare", "--net", "sh", "-ec", script, sys.executable, STEER], capture_output=True, text=True, check=False
    )
    assert done.stdout == "well\n", done.stderr


def test_the_program_ends_every_jump_at_its_end() -> None:
    lines = steer.program(7)
    jumps = [(n, offset) for n, (code, _, _, offset, _) in enumerate(lines) if code in (0x05, 0x15, 0x55)]
    assert jumps and all(n < n + 1 + offset < len(lines) for n, offset in jumps)
