"""Pods and containers as containerd would make them, by one connection to a shim, and timed from outside."""

import asyncio
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Self

from integration.harness.host import Host
from integration.harness.image import IMAGE_PATH, write_rootfs
from integration.harness.pods import BOOTED, Pod, pod_hash
from kata_shimd import wire
from kata_shimd.api import containerd_types, wkt
from kata_shimd.api.descriptors import MethodDescriptor
from kata_shimd.api.services import task_v2
from kata_shimd.errors import ShimError
from kata_shimd.ttrpc import Client

NAMESPACE: Final = "bench"
POD: Final = "p"
NOTES: Final = "io.kubernetes.cri"
#: What every measured container and exec does.
FIRST: Final = ("cat", "/proc/uptime")
KEPT: Final = ("sleep", "86400")


def config(args: Sequence[str], *, member: bool = True, netns: str = "", everything: bool = False) -> dict[str, Any]:
    """A spec; with ``everything`` of a container that may do all that the guest's root may."""
    process: dict[str, Any] = {"args": list(args), "cwd": "/", "env": [IMAGE_PATH]}
    mounts: list[dict[str, Any]] = [{"destination": "/proc", "type": "proc", "source": "proc"}]
    mounts += [{"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]}]
    linux: dict[str, Any] = {"namespaces": [{"type": kind} for kind in ("pid", "mount", "uts", "ipc")]}
    if everything:
        process["capabilities"] = dict.fromkeys(("bounding", "permitted", "effective", "inheritable"), _capabilities())
        mounts += [{"destination": "/sys", "type": "sysfs", "source": "sysfs"}]
        linux["resources"] = {"devices": [{"allow": True, "access": "rwm"}]}
    else:
        linux["namespaces"].append({"type": "network", **({"path": netns} if netns else {})})
    spec = {"ociVersion": "1.0.2", "process": process, "root": {"path": "rootfs"}, "mounts": mounts}
    notes = {f"{NOTES}.container-type": "container", f"{NOTES}.sandbox-id": POD} if member else {}
    return {**spec, "annotations": notes, "linux": linux}


def process_spec(args: Sequence[str]) -> dict[str, Any]:
    """What an exec runs."""
    return {"args": list(args), "cwd": "/", "env": [IMAGE_PATH]}


def _capabilities() -> list[str]:
    said = subprocess.run(["setpriv", "--list-caps"], capture_output=True, text=True, check=True).stdout
    return [f"CAP_{name.upper()}" for name in said.split() if not name.startswith("cap_")]


class Shim:
    """A shim that serves one pod, and our one connection to it; bundles are below ``root``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.rootfs = root / "rootfs"

    @property
    def address(self) -> Path:
        """The socket."""
        raise NotImplementedError

    async def connect(self) -> None:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(self.address))
        self.client = await Client(sock).__aenter__()

    async def disconnect(self) -> None:
        await self.client.__aexit__(None, None, None)

    def write_rootfs(self) -> None:
        if not self.rootfs.exists():
            self.rootfs.mkdir()
            write_rootfs(self.rootfs)

    def bundle(self, name: str, spec: Mapping[str, Any]) -> Path:
        path = self.root / "b" / name
        (path / "rootfs").mkdir(parents=True, exist_ok=True)
        (path / "config.json").write_text(json.dumps(spec))
        return path

    async def call(self, rpc: MethodDescriptor[Any, Any], name: str, **fields: Any) -> Any:
        raw = await self.client.call(rpc.service, rpc.name, wire.encode(rpc.request(id=name, **fields)), timeout=300)
        return wire.decode(rpc.response, raw)

    async def create(self, name: str, *, rootfs: Path | None = None, **stdio: str) -> None:
        source = str(rootfs or self.rootfs)
        mount = containerd_types.Mount(type="bind", source=source, options=["rbind"])
        await self.call(task_v2.CREATE, name, bundle=str(self.root / "b" / name), rootfs=[mount], **stdio)

    async def remove(self, name: str) -> None:
        with suppress(ShimError):  # it has ended by itself
            await self.call(task_v2.KILL, name, signal=9, all=True)
        await self.call(task_v2.WAIT, name)
        await self.call(task_v2.DELETE, name)

    async def second(self, name: str) -> float:
        """Seconds from Create to the first byte of a further container."""
        self.bundle(name, config(FIRST))
        with Output(self.root / f"{name}.out") as output:
            begin = time.perf_counter()
            await self.create(name, stdout=str(output.path))
            await self.call(task_v2.START, name)
            await output.first()
            took = time.perf_counter() - begin
        await self.remove(name)
        return took

    async def exec(self, exec_id: str, container: str = POD) -> float:
        """Seconds from Exec to the first byte."""
        value = json.dumps(process_spec(FIRST)).encode()
        spec = wkt.Any(type_url="types.containerd.io/opencontainers/runtime-spec/1/Process", value=value)
        with Output(self.root / f"{exec_id}.out") as output:
            begin = time.perf_counter()
            await self.call(task_v2.EXEC, container, exec_id=exec_id, stdout=str(output.path), spec=spec)
            await self.call(task_v2.START, container, exec_id=exec_id)
            await output.first()
            took = time.perf_counter() - begin
            await self.call(task_v2.WAIT, container, exec_id=exec_id)
        await self.call(task_v2.DELETE, container, exec_id=exec_id)
        return took

    def verb(self, binary: Path, bundle: Path, *words: str, host: Host | None = None, **env: str) -> None:
        flags = ["-namespace", NAMESPACE, "-address", str(self.root / "c.sock"), "-publish-binary", "x", "-id", POD]
        argv = [str(binary), *flags, *words]
        if host is not None:
            argv = host.argv(["env", f"--chdir={bundle}", *argv])
        environ = os.environ | env
        subprocess.run(argv, cwd=bundle, env=environ, stdin=subprocess.DEVNULL, capture_output=True, check=True)


class Guest(Shim):
    """A pod of ours that has booted and has one container, which sleeps. Use as ``async with``.

    With ``host`` its daemon lives in there, in the network namespace ``netns`` if that is named.
    """

    def __init__(self, prefix: Path, root: Path, *, host: Host | None = None, netns: str = "") -> None:
        super().__init__(root)
        self._launcher, self._host, self._netns = prefix / "bin/containerd-shim-kata-v2", host, netns
        self.pod = Pod(root / "k", pod_hash(str(root / "c.sock"), NAMESPACE, POD))

    @property
    def address(self) -> Path:
        return self.pod.directory / "shim.sock"

    async def __aenter__(self) -> Self:
        self.write_rootfs()
        self._verb(self.bundle(POD, config(KEPT, member=False, netns=self._netns)), "start")
        await self.connect()
        await self.create(POD)
        await self.call(task_v2.START, POD)
        return self

    async def __aexit__(self, *_: object) -> None:
        with suppress(ShimError):
            await self.remove(POD)
            await self.call(task_v2.SHUTDOWN, POD)
        await self.disconnect()
        self._verb(self.root / "b" / POD, "-bundle", str(self.root / "b" / POD), "delete")

    def _verb(self, bundle: Path, *words: str) -> None:
        config = self.root / "booted.toml"
        config.write_text(BOOTED)
        env = {"KATA_SHIMD_RUN_DIR": str(self.root / "k"), "KATA_CONF_FILE": str(config)}
        self.verb(self._launcher, bundle, *words, host=self._host, **env)


class Output:
    """A FIFO that a process writes to."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Self:
        os.mkfifo(self.path, 0o600)
        self.fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)
        self.path.unlink()

    async def first(self) -> bytes:
        """What is there as soon as there is anything; nothing at the end."""
        await readable(self.fd)
        return os.read(self.fd, 1 << 20)


async def readable(fd: int) -> None:
    """Wait for bytes, or the end."""
    loop, come = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(fd, come.set)
    try:
        await come.wait()
    finally:
        loop.remove_reader(fd)


def numbered(names: Iterable[str]) -> dict[str, list[float]]:
    """An empty list for each name."""
    return {name: [] for name in names}
