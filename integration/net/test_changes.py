"""Hearing of changes of a network namespace, the kernel's own messages."""

import asyncio
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import uvloop

from integration.harness import cni
from integration.harness.host import Host
from integration.net.scene import Guest, Scene
from kata_shimd.net.changes import Changes, _open
from kata_shimd.net.namespace import Namespace
from kata_shimd.net.network import PodNetwork

#: More than a socket with the smallest buffer takes.
MANY: Final = 200


@pytest.fixture
def space(host: Host) -> Iterator[Namespace]:
    path = Path("/proc", str(host.pid), "ns/net")
    namespace = Namespace(path, os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    yield namespace
    namespace.close()


@pytest.fixture
def cable(host: Host, tmp_path: Path) -> Iterator[Scene]:
    """A namespace with a cable whose other end is loose."""
    with cni.namespace(host, "idle"):
        made = Scene(host, "idle", tmp_path)
        made.ip("link add eth0 type veth peer name peer")
        made.ip("link set peer up")
        yield made


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


class Timers(asyncio.SelectorEventLoop):
    """Knows what it has been asked to do later."""

    def __init__(self) -> None:
        super().__init__()
        self._asked: list[asyncio.TimerHandle] = []

    def call_at(self, when: float, callback: Callable[..., object], *args: Any, **how: Any) -> asyncio.TimerHandle:
        handle = super().call_at(when, callback, *args, **how)
        self._asked.append(handle)
        return handle

    @property
    def waiting(self) -> list[asyncio.TimerHandle]:
        """Timers that are yet to do something."""
        return [handle for handle in self._asked if not handle.cancelled() and handle.when() > self.time()]


def test_an_idle_network_is_not_looked_at_and_no_timer_will(cable: Scene) -> None:
    """With nothing that could wake it but the socket, there is no span of time after which it would look; a change does at once."""
    with asyncio.Runner(loop_factory=Timers) as runner:
        runner.run(_idle_and_changed(cable))


class Waits:
    """The end of a VM, which comes when it is let. Who follows the network waits for it whenever there is nothing to do."""

    def __init__(self) -> None:
        self.ended, self.now = asyncio.Event(), False

    async def __call__(self) -> None:
        self.now = True
        try:
            await self.ended.wait()
        finally:
            self.now = False


async def _idle_and_changed(cable: Scene) -> None:
    network, guest, waits = await cable.open(), Guest(), Waits()
    network.hand_over()
    loop = asyncio.get_running_loop()
    assert isinstance(loop, Timers)
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        group.create_task(network.follow(guest, guest, waits))
        for words, plugged in (("link set eth0 up", 0), ("addr add 10.7.0.2/24 dev eth0", 1)):
            cable.ip(words)
            await _at_rest(network, waits)
            assert len(guest.plugged) == plugged, "it was heard at once"
            looks = network.looks
            await _turn()
            assert (network.looks, loop.waiting[1:]) == (looks, []), "the first is this test's own limit"
        waits.ended.set()
    network.close()
    cable.undo()


async def _at_rest(network: PodNetwork, waits: Waits) -> None:
    """Until all that the kernel has told is dealt with: it tells before it returns to who made the change."""
    looks = -1
    while not (waits.now and looks == network.looks):
        looks = network.looks
        await _turn()


async def _turn() -> None:
    """Whatever is ready is done in far less turns of the loop."""
    for _ in range(100):
        await asyncio.sleep(0)


async def _heard(changes: Changes) -> bool:
    async with asyncio.timeout(5):
        await changes.wait()
    return True
