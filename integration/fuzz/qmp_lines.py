"""Fuzz of QMP: a monitor whose QEMU says anything, at the greeting, at the negotiation, or for an answer.

    python -m integration.fuzz.qmp_lines [--count 1000000] [--seed 1]

Permitted: `VmFailed` and `DeadlineExceeded`. `qemu.qmp` raises more kinds of its own (QMPError and below, OSError, EOFError,
AssertionError); none of them may pass our monitor.
"""

import asyncio
import json
import random
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, Final

from integration.fuzz import mutate
from integration.fuzz.engine import Target, corpus, main
from kata_shimd.errors import DeadlineExceeded, VmFailed
from kata_shimd.vm import sockets
from kata_shimd.vm.monitor import Monitor

#: Seconds; QEMU's end closes the connection, so an input that says nothing does not take so long.
_DEADLINE: Final = 5.0
#: Greeting, answer to the negotiation, answer to the command; QEMU is gone before the first that is empty.
Input = tuple[bytes, bytes, bytes]


@cache
def _lines() -> list[bytes]:
    return corpus("qmp")[0].splitlines(keepends=True)


def make(rng: random.Random) -> Input:
    """One of the three parts is what it should not be; the library numbers its commands, so answers mostly have the right id."""
    greeting, negotiated, *others = _lines()
    said = b"".join(_said(rng, rng.choice(others)) for _ in range(rng.randrange(1, 5)))
    match rng.randrange(6):
        case 0:
            return _said(rng, greeting), b"", b""
        case 1:
            return greeting, _said(rng, negotiated), b""
        case _:
            return greeting, negotiated, said


def _said(rng: random.Random, line: bytes) -> bytes:
    if rng.random() < 0.4:
        return mutate.data(rng, line)
    return json.dumps(mutate.tree(rng, json.loads(line))).encode() + b"\n"


async def _qemu(guest: socket.socket, given: Input) -> None:
    """Say each part when something was asked, then be gone."""
    loop, (greeting, negotiated, said) = asyncio.get_running_loop(), given
    with suppress(OSError):
        await loop.sock_sendall(guest, greeting)
        for part in filter(None, (negotiated, said)):
            asked = await loop.sock_recv(guest, 65536)
            with suppress(ValueError):
                number = str(json.loads(asked.splitlines()[0]).get("id", "")).encode() if asked else b""
                part = part.replace(b"__qmp#00001", number)
            await loop.sock_sendall(guest, part)
    guest.close()


async def check(listener: socket.socket, path: Path, given: Input) -> None:
    events: list[str] = []
    async with asyncio.TaskGroup() as group:
        talking = group.create_task(_monitor(path, events))
        guest, _ = await asyncio.get_running_loop().sock_accept(listener)
        guest.setblocking(False)
        group.create_task(_qemu(guest, given))
    error = talking.result()
    if error is not None:
        raise error


async def _monitor(path: Path, events: list[str]) -> Exception | None:
    try:
        monitor = await Monitor.connect(path, lambda name, _data: events.append(name), timeout=_DEADLINE)
        try:
            assert isinstance(await monitor.status(), str)
        finally:
            await monitor.close()
    except TARGET.permitted as error:
        return error
    return None


@contextmanager
def opened() -> Iterator[Callable[[Any], None]]:
    with tempfile.TemporaryDirectory(prefix="kf-") as name, asyncio.Runner() as runner:
        path = Path(name) / "qmp.sock"
        loop = runner.get_loop()
        loop.set_exception_handler(_left_over)
        with sockets.listen(path) as listener:
            listener.setblocking(False)
            yield lambda given: loop.run_until_complete(check(listener, path, given))


def _left_over(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What nobody waited for is a finding too."""
    raise AssertionError(f"left behind: {context}")


TARGET: Final = Target("qmp_lines", (VmFailed, DeadlineExceeded), make, opened)

if __name__ == "__main__":
    main(TARGET)
