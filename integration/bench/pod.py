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
from integration.harness.pods import Pod, pod_hash
from kata_shimd import wire
from kata_shimd.api import containerd_types
from kata_shimd.api.descriptors import MethodDescriptor
from kata_shimd.api.services import task_v2
from kata_shimd.errors import ShimError
from kata_shimd.ttrpc import Client

NAMESPACE: Final = "bench"
ADDRESS: Final = "/run/no-containerd.sock"
SANDBOX: Final = "p"


@dataclass(frozen=True, slots=True)
class Timeline:
    """Seconds since the launcher was spawned; phases as the daemon journalled them, in milliseconds."""

    started: float
    ready: float
    first_byte: float
    phases: Mapping[str, float]


class BenchPod:
    """Makes its pod in ``with`` and leaves nothing of it."""

    def __init__(self, launcher: Path, root: Path) -> None:
        self._launcher, self._root = launcher, root
        self._bundle = root / "bundle"
        self._pod = Pod(root / "run", pod_hash(ADDRESS, NAMESPACE, SANDBOX))

    def __enter__(self) -> Self:
        (self._bundle / "rootfs").mkdir(parents=True, exist_ok=True)
        write_rootfs(self._bundle / "rootfs")
        process = {"args": ["sh", "-c", "echo first; exec sleep 1000"], "cwd": "/", "env": [IMAGE_PATH]}
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
        first_byte = asyncio.run(self._run())
        events = self._pod.journal()
        ready = next(event["t"] for event in events if event["event"] == "agent-ready")
        phases = {event["phase"]: event["ms"] for event in events if event["event"] == "boot-phase"}
        return Timeline((started - begun) / 1e9, (ready - begun) / 1e9, (first_byte - begun) / 1e9, phases)

    async def _run(self) -> int:
        reader = os.open(self._bundle / "out", os.O_RDONLY | os.O_NONBLOCK)
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(self._pod.directory / "shim.sock"))
        try:
            async with Client(sock) as client:
                rootfs = containerd_types.Mount(type="bind", source=str(self._bundle / "rootfs"), options=["rbind"])
                stdout = str(self._bundle / "out")
                await _call(client, task_v2.CREATE, bundle=str(self._bundle), rootfs=[rootfs], stdout=stdout)
                await _call(client, task_v2.START)
                first_byte = await _first_byte(reader)
                await self._end(client)
            return first_byte
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
        env = {**os.environ, "KATA_SHIMD_RUN_DIR": str(self._root / "run")}
        argv = [str(self._launcher), *flags, *words]
        subprocess.run(argv, cwd=self._bundle, env=env, stdin=subprocess.DEVNULL, capture_output=True, check=True)


async def _call(client: Client, rpc: MethodDescriptor[Any, Any], **fields: Any) -> None:
    await client.call(rpc.service, rpc.name, wire.encode(rpc.request(id=SANDBOX, **fields)), timeout=120)


async def _first_byte(reader: int) -> int:
    loop = asyncio.get_running_loop()
    come = asyncio.Event()
    loop.add_reader(reader, come.set)
    try:
        await come.wait()
        return time.time_ns()
    finally:
        loop.remove_reader(reader)
