"""Device state out of a stopped QEMU and into a waiting one, over a socket that QEMU is given.

RAM is shared memory and is not part of it (``x-ignore-shared``). QEMU's sandbox lets it start no program, so there is no other way
than a descriptor; and a socket keeps QEMU from the template's own file.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Final

from kata_shimd.errors import DeadlineExceeded, ResourceExhausted, VmFailed
from kata_shimd.vm.monitor import Monitor

#: Firmware, tables and devices are a megabyte or two.
MAX_STATE: Final = 64 << 20
_NAME: Final = "state"
_READ: Final = 1 << 20
_CAPABILITIES: Final = {"capabilities": [{"capability": name, "state": True} for name in ("x-ignore-shared", "events")]}


async def save(monitor: Monitor, *, timeout: float) -> bytes:
    """The device state of a VM that is stopped.

    :raises VmFailed, DeadlineExceeded: QEMU would not
    :raises ResourceExhausted: it is larger than any that is real
    """
    await monitor.execute("migrate-set-capabilities", _CAPABILITIES)
    with monitor.statuses("MIGRATION") as following:
        with await _hand_over(monitor) as ours:
            await monitor.execute("migrate", {"uri": f"fd:{_NAME}"})
            async with asyncio.timeout(timeout):
                state = await _read(ours)
        await _completed(following, "save VM", timeout)
    return state


async def load(monitor: Monitor, state: bytes, *, timeout: float) -> None:
    """Give a VM that was started with ``-incoming defer`` its state; it stays stopped. One that cannot take it ends.

    :raises VmFailed, DeadlineExceeded: it did not take it
    """
    await monitor.execute("migrate-set-capabilities", _CAPABILITIES)
    with monitor.statuses("MIGRATION") as following:
        with await _hand_over(monitor) as ours:
            await monitor.execute("migrate-incoming", {"uri": f"fd:{_NAME}"})
            try:
                async with asyncio.timeout(timeout):
                    await asyncio.get_running_loop().sock_sendall(ours, state)
            except OSError as error:
                raise VmFailed("load VM", "", error.strerror or "QEMU closed the channel") from error
        await _completed(following, "load VM", timeout)


async def _hand_over(monitor: Monitor) -> socket.socket:
    """Our end of a connection whose other end QEMU has."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with theirs:
        try:
            await monitor.send_fd(_NAME, theirs.fileno())
        except BaseException:
            ours.close()
            raise
    return ours


async def _read(ours: socket.socket) -> bytes:
    state, loop = bytearray(), asyncio.get_running_loop()
    while piece := await loop.sock_recv(ours, _READ):
        state += piece
        if len(state) > MAX_STATE:
            raise ResourceExhausted("save VM", "device state", f"more than {MAX_STATE} bytes")
    return bytes(state)


async def _completed(following: Callable[[], Awaitable[str]], step: str, timeout: float) -> None:
    try:
        async with asyncio.timeout(timeout):
            while (status := await following()) != "completed":
                if status in ("failed", "cancelled"):
                    raise VmFailed(step, "", f"migration {status}")
    except TimeoutError as error:
        raise DeadlineExceeded(step, "", f"migration not completed in {timeout:g} s") from error
