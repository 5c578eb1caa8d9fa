"""One running shim with a pod to use, started the way containerd starts it: ``start`` in a bundle, then its socket.

Owns the shim's processes and everything below its private machine (`integration.harness.host`). What must never happen: a shim, a
mount or a cgroup that is still there after `close`.
"""

import asyncio
import os
import shutil
import signal
import socket
import zlib
from collections import deque
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from integration.differential.bundle import Bundle, Stdio, exec_request, spec
from integration.differential.recorder import Recorder
from integration.differential.steps import Call, Program, Rpc
from integration.harness import image, pods, process
from integration.harness.host import Host
from integration.harness.scale import SCALE
from kata_shimd import wire
from kata_shimd.api import task
from kata_shimd.api.services import task_v2, task_v3
from kata_shimd.errors import ShimError
from kata_shimd.ttrpc import Client

NAMESPACE: Final = "differential"
TYPE: Final = "io.kubernetes.cri.container-type"
SANDBOX: Final = "io.kubernetes.cri.sandbox-id"
REPLIES: Final[Mapping[str, Any]] = {rpc.name: rpc.response for rpc in task_v2.SERVICE}


@dataclass(frozen=True, slots=True)
class Kind:
    """A shim to compare. ``answer``: seconds any RPC but Wait may take; ``settle``: seconds for a consequence to be seen.

    ``services``: the names under which it has the Task service; each sequence is told by its name which one it uses.
    """

    name: str
    binary: Path
    answer: float
    settle: float
    services: tuple[str, ...] = (task_v2.SERVICE.name,)

    @property
    def is_runc(self) -> bool:
        return self.name == "runc"

    def service(self, sequence: str) -> str:
        """The same one for the same sequence, wherever it is replayed."""
        return self.services[zlib.crc32(sequence.encode()) % len(self.services)]


def runc() -> Kind:
    """:raises FileNotFoundError: Debian's containerd is not installed"""
    found = shutil.which("containerd-shim-runc-v2")
    if found is None:
        raise FileNotFoundError("containerd-shim-runc-v2 is not on PATH: apt-get install containerd runc")
    return Kind("runc", Path(found), answer=20.0, settle=5.0)


def kata() -> Kind:
    """:raises FileNotFoundError: our launcher is neither where KATA_SHIMD_LAUNCHER says nor installed"""
    prefix = Path(os.environ.get("KATA_SHIMD_PREFIX", "/opt/kata-shimd"))
    binary = Path(os.environ.get("KATA_SHIMD_LAUNCHER", prefix / "bin/containerd-shim-kata-v2"))
    if not binary.exists():
        raise FileNotFoundError(f"{binary} is not there: install it, or set KATA_SHIMD_LAUNCHER")
    both = (task_v2.SERVICE.name, task_v3.SERVICE.name)
    return Kind("kata", binary, answer=20.0 * SCALE, settle=4.0 * SCALE, services=both)


class VerbFailed(RuntimeError):
    """A verb of the binary ended with an error."""


class Shim:
    """A private machine, a stand-in for containerd and one shim with its pod. Use as ``async with``."""

    def __init__(self, kind: Kind, *, pod: bool = True) -> None:
        self.kind, self._with_pod = kind, pod
        self.host = Host([kind.binary.parent])
        #: Also the start of every id, so of the few characters that an identifier may have.
        self.tag = f"kt{zlib.crc32(self.host.root.name.encode()):08x}"
        self.pod_id = f"{self.tag}-pod"
        self.address = self.host.root / "containerd.sock"
        self.recorder = Recorder(self.address.with_name("containerd.sock.ttrpc"))
        self.log: deque[bytes] = deque(maxlen=1000)
        self._rootfs = self.host.root / "image"
        self._connections: dict[str, Client] = {}
        self._made = AsyncExitStack()
        self.pid: process.Process | None = None
        #: A container could not be ended: the shim will stay, and may be killed.
        self.spoilt = False
        self._socket = ""
        #: The name under which it is called.
        self.service = kind.services[0]

    async def __aenter__(self) -> Self:
        try:
            await self._open()
        except BaseException:
            self.spoilt = True
            await self._made.aclose()
            raise
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self._made.aclose()

    async def _open(self) -> None:
        """Everything that is made is pushed with what undoes it, so that it goes whatever fails in between."""
        self._made.callback(_remove_cgroups, self.tag)
        self._made.callback(self.host.close)
        self._rootfs.mkdir()
        image.write_rootfs(self._rootfs)
        self._choose_machines()
        await self._made.enter_async_context(self.recorder)
        self._made.callback(self._kill_rest)
        self._made.push_async_callback(self._disconnect)
        if self._with_pod:
            await self._open_pod()

    def _choose_machines(self) -> None:
        """Ours are cloned or booted as all tests' are; a template is made once for all of these machines."""
        if self.kind.name != "kata":
            return
        if config := pods.guest_config(self.host.root):
            self.host.env.setdefault("KATA_CONF_FILE", str(config))
        if pods.are_cloned() and (command := self.kind.binary.with_name("kata-shimd")).exists():
            pods.make_template(self.host, command, config)

    # --- containers ----------------------------------------------------------------------------------------------

    def bundle(self, container_id: str) -> Bundle:
        return Bundle(self.host.root / "b" / container_id, self._rootfs)

    def stdio(self, call: Call, container_id: str, name: str) -> Stdio:
        """FIFOs for one process; ``name`` sets repeated attempts apart."""
        return Stdio(self.host.root / "io" / container_id / name, call)

    def write_bundle(self, call: Call, container_id: str) -> None:
        """What containerd writes before Create."""
        notes = {TYPE: "sandbox" if container_id == self.pod_id else "container", SANDBOX: self.pod_id}
        content = spec(
            call.program or Program.SLEEP,
            terminal=call.terminal,
            cgroup=f"/{self.tag}/{container_id}",
            annotations=notes if self._with_pod else {},
        )
        self.bundle(container_id).write(content)

    async def begin(self, container_id: str) -> None:
        """Run ``start`` in a container's bundle and connect, as containerd does before its Create."""
        bundle = self.bundle(container_id)
        first = self.pid is None
        if first:
            self._open_log(bundle.path / "log")
        self._socket = (await self._run("start", container_id, bundle.path)).decode().strip().removeprefix("unix://")
        self._connections[container_id] = await self._connect()
        if first:
            reply = wire.decode(
                task.ConnectResponse,
                await self.call(Rpc.CONNECT, task.ConnectRequest(id=container_id), container_id),
            )
            self.pid = process.find(reply.shim_pid)

    async def finish(self, container_id: str) -> None:
        """What containerd does after its Delete: Shutdown, close the connection, the ``delete`` verb."""
        client = self._connections.pop(container_id, None)
        if client is not None and client.error is None:
            with suppress(Exception):
                await client.call(
                    self.service, "Shutdown", wire.encode(task.ShutdownRequest(id=container_id)), timeout=3
                )
        if client is not None:
            client.close()
        bundle = self.bundle(container_id).path
        if bundle.exists():
            with suppress(VerbFailed):  # as containerd does: runc's cannot where no Create has succeeded
                await self._run("delete", container_id, bundle)

    def has(self, container_id: str) -> bool:
        return container_id in self._connections

    async def call(self, rpc: Rpc, request: Any, container_id: str) -> bytes:
        """One RPC, on the container's own connection where it has one."""
        client = self._connections.get(container_id) or next(iter(self._connections.values()), None)
        if client is None:
            client = self._connections[container_id] = await self._connect()
        timeout = None if rpc is Rpc.WAIT else self.kind.answer
        return await client.call(self.service, rpc, wire.encode(request), timeout=timeout)

    async def events_settled(self, mark: str) -> None:
        """Everything that was published before now has been recorded: an exec added now is told after it."""
        await self.call(Rpc.EXEC, exec_request(Call(Rpc.EXEC), self.pod_id, mark, {}), self.pod_id)
        async with asyncio.timeout(self.kind.answer):
            await self.recorder.until(
                lambda: any(event.fields.get("exec_id") == mark for event in self.recorder.of(self.pod_id))
            )
        await self.call(Rpc.DELETE, task.DeleteRequest(id=self.pod_id, exec_id=mark), self.pod_id)

    def evidence(self) -> str:
        """What the shim left behind of its own: its log, and our journal, output and console."""
        files = pods.attachments(self.host.run_dir)
        said = b"".join(self.log).decode(errors="replace")[-4000:]
        return "\n".join([f"--- log\n{said}", *(f"--- {name}\n{text[-8000:]}" for name, text in files.items())])

    # --- the pod -------------------------------------------------------------------------------------------------

    async def _open_pod(self) -> None:
        call = Call(Rpc.CREATE, program=Program.SLEEP)
        self.write_bundle(call, self.pod_id)
        await self.begin(self.pod_id)
        stdio = self.stdio(call, self.pod_id, "init")
        self._made.callback(stdio.close)
        await self.call(Rpc.CREATE, self.bundle(self.pod_id).create(call, self.pod_id, stdio.paths), self.pod_id)
        await self.call(Rpc.START, task.StartRequest(id=self.pod_id), self.pod_id)
        self._made.push_async_callback(self._close_pod)

    async def _close_pod(self) -> None:
        """End the pod's own container, which must work unless the shim has been spoilt."""
        if self.pid is None or not self.pid.alive():
            return
        with suppress(*([ShimError, TimeoutError] if self.spoilt else [])):
            await self.call(Rpc.KILL, task.KillRequest(id=self.pod_id, signal=9, all=True), self.pod_id)
            async with asyncio.timeout(self.kind.answer):
                await self.call(Rpc.WAIT, task.WaitRequest(id=self.pod_id), self.pod_id)
            await self.call(Rpc.DELETE, task.DeleteRequest(id=self.pod_id), self.pod_id)

    async def _disconnect(self) -> None:
        for container_id in reversed(tuple(self._connections)):
            await self.finish(container_id)
        if not await self.ended() and not self.spoilt:
            raise RuntimeError(f"the {self.kind.name} shim outlived its last container; it was killed")

    def _kill_rest(self) -> None:
        """Whatever still runs of the shim's: itself, and what a lost one left."""
        for left in process.descendants():
            if self.tag in left.command():
                left.kill()

    async def ended(self) -> bool:
        """Whether the shim's process ends within its time."""
        if self.pid is None:
            return True
        with suppress(TimeoutError, ProcessLookupError):
            async with asyncio.timeout(self.kind.answer):
                await _until_gone(self.pid.pid)
        return not self.pid.alive()

    # --- the shim's process --------------------------------------------------------------------------------------

    async def _run(self, verb: str, container_id: str, bundle: Path) -> bytes:
        """A verb of the binary; what it printed."""
        flags = [
            "-namespace",
            NAMESPACE,
            "-address",
            str(self.address),
            "-publish-binary",
            "/usr/bin/containerd",
            "-id",
            container_id,
        ]
        flags += ["-bundle", str(bundle)] if verb == "delete" else []
        argv = self.host.argv(["env", f"--chdir={bundle}", self.kind.binary, *flags, verb])
        pipe = asyncio.subprocess.PIPE
        env = {**self.host.env, "TTRPC_ADDRESS": f"{self.address}.ttrpc", "GOMAXPROCS": "2"}
        child = await asyncio.create_subprocess_exec(
            *argv, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe, env=env
        )
        out, err = await child.communicate()
        if child.returncode:
            raise VerbFailed(f"{self.kind.name} {verb} {container_id}: {(out + err).decode(errors='replace')}")
        return out

    async def _connect(self) -> Client:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, f"{self.host.inside}{self._socket}")
        except BaseException:
            sock.close()
            raise
        return Client(sock)

    def _open_log(self, path: Path) -> None:
        """containerd's end of the shim's log."""
        os.mkfifo(path, 0o700)
        fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._made.callback(os.close, fd)
        loop = asyncio.get_running_loop()
        loop.add_reader(fd, lambda: self.log.append(os.read(fd, 65536)))
        self._made.callback(loop.remove_reader, fd)


async def _until_gone(pid: int) -> None:
    fd = os.pidfd_open(pid)
    loop = asyncio.get_running_loop()
    gone = loop.create_future()
    loop.add_reader(fd, lambda: gone.done() or gone.set_result(None))
    try:
        await gone
    finally:
        loop.remove_reader(fd)
        os.close(fd)


def _remove_cgroups(name: str) -> None:
    """The parent of our containers' cgroups, which no runtime removes; what a lost shim left in them ends first."""
    for top in [Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").iterdir()]:
        for path in sorted((top / name).glob("**/"), reverse=True):
            with suppress(OSError):
                for pid in (path / "cgroup.procs").read_text().split():
                    os.kill(int(pid), signal.SIGKILL)
                path.rmdir()
