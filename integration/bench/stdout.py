"""A container's output, beside `cat` over the same kind of channel without agent, daemon or protocol.

A port is plugged into the machine of the pod, on the virtio-serial controller that the agent's port is on, and its
other end is a socket of ours. A container that may do everything runs the same `cat` of the same file in memory, once
to its stdout and once into that port, in turn. What is timed is the time from the first bytes that come to the last.
"""

import asyncio
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from qemu.qmp import QMPClient

from integration.bench.guest import Guest, Output, config, numbered
from integration.bench.results import MIB, Claim, Group, Measured, Options, Series, in_tmp
from integration.harness.image import write_rootfs
from kata_shimd.api.services import task_v2

WRITER: Final = "writer"
SIZE: Final = 32 * MIB
PORT: Final = "bench"
SCRIPT: Final = f"""
exec 2>&1
mount -t tmpfs tmpfs /tmp
dd if=/dev/zero of=/tmp/data bs=1M count=$1 2> /dev/null
until at=$(dirname $(grep -lx {PORT} /sys/class/virtio-ports/*/name)); do usleep 10000; done
mknod /dev/port c $(tr : ' ' < $at/dev)
echo ready
while read -r where; do
    case $where in stdout) cat /tmp/data;; port) cat /tmp/data > /dev/port;; esac
done
"""


class Writer:
    """The container and the two ways out of it. Use as ``async with``."""

    def __init__(self, guest: Guest, size: int) -> None:
        self._guest, self._size = guest, size
        self._output = Output(guest.root / "writer.out")
        self._stdin = guest.root / "writer.in"
        self._port, self._qemus = socket.socketpair()

    async def __aenter__(self) -> "Writer":
        await self._plug()
        rootfs = self._guest.root / "writer"
        rootfs.mkdir()
        write_rootfs(rootfs)
        os.mkfifo(self._stdin, 0o600)
        words = ("sh", "-c", SCRIPT, "sh", str(self._size // MIB))
        self._guest.bundle(WRITER, config(words, everything=True))
        self._stream = self._output.__enter__().fd
        await self._guest.create(WRITER, rootfs=rootfs, stdin=str(self._stdin), stdout=str(self._output.path))
        self._commands = os.open(self._stdin, os.O_RDWR)  # does not wait for the other end
        await self._guest.call(task_v2.START, WRITER)
        said = await self._output.first()
        if said != b"ready\n":
            raise RuntimeError(f"container that writes: {said!r}")
        os.set_blocking(self._stream, True)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._guest.remove(WRITER)
        os.close(self._commands)
        self._output.__exit__()
        self._port.close()

    async def stdout(self) -> float:
        """MiB a second."""
        return await asyncio.to_thread(self._timed, "stdout", lambda: len(os.read(self._stream, MIB)))

    async def port(self) -> float:
        return await asyncio.to_thread(self._timed, "port", lambda: len(self._port.recv(MIB)))

    def _timed(self, where: str, read: Callable[[], int]) -> float:
        os.write(self._commands, f"{where}\n".encode())
        first = got = read()
        begin = time.perf_counter()
        while got < self._size:
            if not (more := read()):
                raise RuntimeError(f"{where}: it ended after {got} bytes")
            got += more
        return (self._size - first) / MIB / (time.perf_counter() - begin)

    async def _plug(self) -> None:
        """Our socket's other end is given to QEMU, for that opens nothing by name."""
        client = QMPClient(PORT)
        await client.connect(str(self._guest.pod.directory / "qmp-debug.sock"))
        try:
            client.send_fd_scm(self._qemus.fileno())
            await client.execute("getfd", {"fdname": PORT})
            address = {"type": "fd", "data": {"str": PORT}}
            backend = {"type": "socket", "data": {"addr": address, "server": False}}
            await client.execute("chardev-add", {"id": PORT, "backend": backend})
            device = {"driver": "virtserialport", "chardev": PORT, "bus": "serial0.0", "name": PORT, "id": PORT}
            await client.execute("device_add", device)
        finally:
            await client.disconnect()
            self._qemus.close()


async def measure(prefix: Path, root: Path, rounds: int, size: int) -> dict[str, list[float]]:
    """MiB a second of either way, a value a round."""
    async with Guest(prefix, root) as guest, Writer(guest, size) as writer:
        ways = {"stdout of a container": writer.stdout, "`cat` into a port": writer.port}
        taken = numbered(ways)
        for _ in range(rounds):
            for name, way in ways.items():
                taken[name].append(await way())
        return taken


def run(options: Options) -> Measured:
    with in_tmp() as root:
        taken = asyncio.run(measure(options.prefix, root, options.rounds, MIB if options.quick else SIZE))
    return {name: Series("MiB/s", values) for name, values in taken.items()}


GROUP: Final = Group(
    "stdout",
    "A container's output",
    f"""`cat` of a file of {SIZE // MIB} MiB in the guest's memory: to the container's stdout, as its client reads it from the
FIFO; and into a second port of the same virtio-serial controller, with a socket of ours at its other end: no agent,
no protocol, no daemon. From the first bytes that come to the last.""",
    run,
    (
        Claim(
            "stdout throughput ÷ `cat` over the same guest channel",
            "stdout of a container",
            "`cat` into a port",
            0.8,
            at_least=True,
            limits="the peer gives pages away by splice; output is copied into a pipe, a message and a port, then by the daemon",
        ),
    ),
)
