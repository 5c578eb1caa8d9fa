"""One pod made by hand, as containerd would make it, and timed from outside."""

import asyncio
import json
import os
import socket
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from integration.harness.image import IMAGE_PATH, write_rootfs
from integration.harness.pods import BOOTED, Pod, pod_hash
from kata_shimd import wire
from kata_shimd.api import containerd_types
from kata_shimd.api.descriptors import MethodDescriptor
from kata_shimd.api.services import task_v2
from kata_shimd.errors import ShimError
from kata_shimd.ttrpc import Client

MIB: Final = 1 << 20

NAMESPACE: Final = "bench"
ADDRESS: Final = "/run/no-containerd.sock"
SANDBOX: Final = "p"
#: The container's first byte, and then, untimed, what it sees of the guest's memory.
SCRIPT: Final = "echo first; cat /proc/meminfo; echo last; exec sleep 1000"


@dataclass(frozen=True, slots=True)
class Timeline:
    """Seconds since the launcher was spawned; phases as the daemon journalled them, in milliseconds.

    `used_mib` is what the guest and the container have taken of the guest's memory: MemTotal − MemAvailable − page cache.
    """

    started: float
    ready: float
    first_byte: float
    phases: Mapping[str, float]
    used_mib: float


class BenchPod:
    """Makes its pod in ``with`` and leaves nothing of it."""

    def __init__(self, launcher: Path, root: Path, config: Path | None = None) -> None:
        """``config`` is a configuration in place of the built-in defaults and a boot."""
        self._launcher, self._root, self._config = launcher, root, config or root / "booted.toml"
        self._bundle = root / "bundle"
        self._pod = Pod(root / "run", pod_hash(ADDRESS, NAMESPACE, SANDBOX))

    def __enter__(self) -> Self:
        (self._root / "booted.toml").write_text(BOOTED)
        (self._bundle / "rootfs").mkdir(parents=True, exist_ok=True)
        write_rootfs(self._bundle / "rootfs")
        process = {"args": ["sh", "-c", SCRIPT], "cwd": "/", "env": [IMAGE_PATH]}
        namespaces = [{"type": name} for name in ("pid", "mount", "uts", "ipc", "network")]
        mounts = [{"destination": "/proc", "type": "proc", "source": "proc"}]
        spec = {"ociVersion": "1.0.2", "process": process, "root": {"path": "rootfs"}, "mounts": mounts}
        (self._bundle / "config.json").write_text(json.dumps({**spec, "linux": {"namespaces": namespaces}}))
        os.mkfifo(self._bundle / "out", 0o600)
        return self

    def __exit__(self, *_: object) -> None:
        self._verb("-bundle", str(self._bundle), "delete")

    def measure(self) -> Timeline:
        """From the spawn of `start` to the container's first byte."""
        begun = time.time_ns()
        self._verb("start")
        started = time.time_ns()
        first_byte, said = asyncio.run(self._run())
        events = self._pod.journal()
        ready = next(event["t"] for event in events if event["event"] == "agent-ready")
        phases = {event["phase"]: event["ms"] for event in events if event["event"] == "boot-phase"}
        seconds = [(moment - begun) / 1e9 for moment in (started, ready, first_byte)]
        return Timeline(seconds[0], seconds[1], seconds[2], phases, used(said) / MIB)

    async def _run(self) -> tuple[int, str]:
        reader = os.open(self._bundle / "out", os.O_RDONLY | os.O_NONBLOCK)
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(self._pod.directory / "shim.sock"))
        try:
            async with Client(sock) as client:
                rootfs = containerd_types.Mount(type="bind", source=str(self._bundle / "rootfs"), options=["rbind"])
                stdout = str(self._bundle / "out")
                await _call(client, task_v2.CREATE, bundle=str(self._bundle), rootfs=[rootfs], stdout=stdout)
                await _call(client, task_v2.START)
                first_byte = await _readable(reader)
                said = await _until(reader, "last\n")
                await self._end(client)
            return first_byte, said
        finally:
            os.close(reader)

    async def _end(self, client: Client) -> None:
        await _call(client, task_v2.KILL, signal=9)
        await _call(client, task_v2.WAIT)
        await _call(client, task_v2.DELETE)
        with suppress(ShimError):  # the daemon may be gone before its answer is read
            await _call(client, task_v2.SHUTDOWN)

    def _verb(self, *words: str) -> None:
        flags = ["-namespace", NAMESPACE, "-address", ADDRESS, "-publish-binary", "x", "-id", SANDBOX]
        env = {**os.environ, "KATA_SHIMD_RUN_DIR": str(self._root / "run"), "KATA_CONF_FILE": str(self._config)}
        argv = [str(self._launcher), *flags, *words]
        subprocess.run(argv, cwd=self._bundle, env=env, stdin=subprocess.DEVNULL, capture_output=True, check=True)


async def _call(client: Client, rpc: MethodDescriptor[Any, Any], **fields: Any) -> None:
    await client.call(rpc.service, rpc.name, wire.encode(rpc.request(id=SANDBOX, **fields)), timeout=120)


def used(meminfo: str) -> int:
    """Bytes that a guest has taken for itself, from the text of its /proc/meminfo."""
    rows = (line.split() for line in meminfo.splitlines() if line.endswith(" kB"))
    kib = {row[0].rstrip(":"): int(row[1]) for row in rows}
    return 1024 * (kib["MemTotal"] - kib["MemAvailable"] - kib["Cached"] - kib["Buffers"])


async def _until(reader: int, end: str) -> str:
    said = ""
    while not said.endswith(end):
        await _readable(reader)
        said += os.read(reader, 1 << 16).decode()
    return said


async def _readable(reader: int) -> int:
    """Wait; the time at which there was something to read, in ns."""
    loop = asyncio.get_running_loop()
    come = asyncio.Event()
    loop.add_reader(reader, come.set)
    try:
        await come.wait()
        return time.time_ns()
    finally:
        loop.remove_reader(reader)
