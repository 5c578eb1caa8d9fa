"""Hearing of changes of a network namespace, the kernel's own messages."""

import asyncio
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
import uvloop

from integration.harness.host import Host
from kata_shimd.net.changes import Changes, _open
from kata_shimd.net.namespace import Namespace

#: More than a socket with the smallest buffer takes.
MANY: Final = 200


@pytest.fixture
def space(host: Host) -> Iterator[Namespace]:
    path = Path("/proc", str(host.pid), "ns/net")
    namespace = Namespace(path, os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    yield namespace
    namespace.close()


def addresses(host: Host, verb: str, *numbers: int) -> None:
    lines = "".join(f"addr {verb} 10.9.{number}.1/32 dev lo\n" for number in numbers)
    host.run(["ip", "-batch", "-"], input=lines.encode()).check_returncode()


@pytest.mark.parametrize("loop", [asyncio.SelectorEventLoop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_changes_are_heard_after_more_than_the_socket_holds(
    host: Host, space: Namespace, loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(_flooded(host, space))


async def _flooded(host: Host, space: Namespace) -> None:
    sock = await space.run(_open)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    changes = Changes(sock)
    try:
        for verb in ("add", "del"):
            addresses(host, verb, *range(MANY))  # the loop does not turn meanwhile, so the socket overflows
            assert await _heard(changes)
        for verb in ("add", "del"):
            await asyncio.to_thread(addresses, host, verb, 1)
            assert await _heard(changes)
    finally:
        changes.close()


async def _heard(changes: Changes) -> bool:
    async with asyncio.timeout(5):
        await changes.wait()
    return True
