"""The south in memory, for the domain's own tests: a guest with real state, not a recorder of calls.

`Guest` behaves as the agent's protocol says (`kata.md` §3.6): processes run until they end, output is read to its end, a signal
ends a process. `integration/` runs the same domain against the real one.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kata_shimd.errors import AgentRefused, Code, Unavailable
from kata_shimd.pod.events import Event
from kata_shimd.pod.storage import RootfsShare, Share
from kata_shimd.pod.values import Ended, GuestStorage, Sandbox, Stdio, VmExit


async def until(condition: Callable[[], object]) -> None:
    """Let the other tasks run until something is so; a test that never gets there fails by its time limit."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - there is no event for what is inside
            await asyncio.sleep(0)


@dataclass
class GuestProcess:
    """A process in the guest: what it will say, and how it ends."""

    started: bool = False
    output: asyncio.Queue[bytes] = field(default_factory=asyncio.Queue)
    errors: asyncio.Queue[bytes] = field(default_factory=asyncio.Queue)
    stdin: bytes = b""
    stdin_closed: bool = False
    size: tuple[int, int] | None = None
    #: In nanoseconds since the epoch; 0 is an agent that does not tell.
    says_it_ended: int = 0
    status: asyncio.Future[int] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def end(self, status: int) -> None:
        if not self.status.done():
            self.status.set_result(status)
            self.output.put_nowait(b"")
            self.errors.put_nowait(b"")


class Guest:
    """An agent. RPCs in ``silent`` are never answered, those in ``refuse`` with a status; ``deaf`` only says it sent a signal."""

    def __init__(self) -> None:
        self.processes: dict[tuple[str, str], GuestProcess] = {}
        self.specs: dict[str, Mapping[str, Any]] = {}
        #: Containers that have the pod's PID namespace.
        self.sharing: set[str] = set()
        self.calls: list[tuple[str, ...]] = []
        self.refuse: dict[str, Code] = {}
        self.silent: set[str] = set()
        self.deaf = False
        self.again = False
        self.extra: frozenset[str] = frozenset()
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.oom: asyncio.Queue[str] = asyncio.Queue()

    def die(self) -> None:
        """The channel breaks: every call under way and every later one fails."""
        if not self.lost.done():
            self.lost.set_result("the guest is gone")

    async def _answer(self, rpc: str, *words: str) -> None:
        self.calls.append((rpc, *words))
        if rpc in self.silent:
            await self._until_lost(asyncio.get_running_loop().create_future())
        if self.lost.done():
            raise Unavailable(rpc, cause="the guest is gone")
        if rpc in self.refuse:
            raise AgentRefused(rpc, "", self.refuse[rpc], "refused")

    async def _until_lost(self, future: "asyncio.Future[Any]") -> Any:
        waiting = asyncio.ensure_future(future)  # noqa: TID251
        await asyncio.wait({waiting, self.lost}, return_when=asyncio.FIRST_COMPLETED)
        if self.lost.done():
            waiting.cancel()
            raise Unavailable("wait", cause="the guest is gone")
        return waiting.result()

    def process(self, container_id: str, exec_id: str = "") -> GuestProcess:
        if (container_id, exec_id) not in self.processes:
            raise AgentRefused("look up", f"{container_id}/{exec_id}", Code.NOT_FOUND, "no such process")
        return self.processes[container_id, exec_id]

    def is_again(self) -> bool:
        return self.again

    async def gone(self) -> str:
        return await asyncio.shield(self.lost)

    async def check(self) -> None:
        await self._answer("check")

    async def features(self) -> frozenset[str]:
        return self.extra

    async def create_sandbox(self, sandbox: Sandbox) -> None:
        await self._answer("create_sandbox", sandbox.sandbox_id)

    async def destroy_sandbox(self) -> None:
        await self._answer("destroy_sandbox")

    async def create_container(
        self, container_id: str, spec: Mapping[str, Any], storages: Sequence[GuestStorage], *, sandbox_pidns: bool
    ) -> None:
        await self._answer("create_container", container_id)
        self.specs[container_id] = spec
        if sandbox_pidns:
            self.sharing.add(container_id)
        self.processes[container_id, ""] = GuestProcess()

    async def start_container(self, container_id: str) -> None:
        await self._answer("start_container", container_id)
        self.process(container_id).started = True

    async def remove_container(self, container_id: str) -> None:
        await self._answer("remove_container", container_id)
        for key in [key for key in self.processes if key[0] == container_id]:
            del self.processes[key]

    async def exec_process(self, container_id: str, exec_id: str, process: Mapping[str, Any]) -> None:
        await self._answer("exec_process", container_id, exec_id)
        self.processes[container_id, exec_id] = GuestProcess(started=True)

    async def signal_process(self, container_id: str, exec_id: str, signal: int) -> None:
        await self._answer("signal_process", container_id, exec_id, str(signal))
        target = self.process(container_id, exec_id)
        if target.status.done() and (exec_id or signal != 9):
            raise AgentRefused("signal", container_id, Code.NOT_FOUND, "it has ended")
        if self.deaf:
            return
        everyone = (
            [p for (c, e), p in self.processes.items() if c == container_id]
            if not exec_id and signal == 9
            else [target]
        )
        for process in everyone:
            process.end(128 + signal)

    async def wait_process(self, container_id: str, exec_id: str) -> Ended:
        await self._answer("wait_process", container_id, exec_id)
        process = self.process(container_id, exec_id)
        ended = Ended(await self._until_lost(asyncio.shield(process.status)))
        ended.at = process.says_it_ended
        return ended

    async def read_stdout(self, container_id: str, exec_id: str, length: int) -> bytes:
        data: bytes = await self._until_lost(self.process(container_id, exec_id).output.get())  # type: ignore[arg-type]
        return data

    async def read_stderr(self, container_id: str, exec_id: str, length: int) -> bytes:
        data: bytes = await self._until_lost(self.process(container_id, exec_id).errors.get())  # type: ignore[arg-type]
        return data

    async def write_stdin(self, container_id: str, exec_id: str, data: bytes) -> int:
        await self._answer("write_stdin")
        self.process(container_id, exec_id).stdin += data[:7]  # takes little at a time, as a full pipe does
        return len(data[:7])

    async def close_stdin(self, container_id: str, exec_id: str) -> None:
        await self._answer("close_stdin", container_id, exec_id)
        self.process(container_id, exec_id).stdin_closed = True

    async def resize(self, container_id: str, exec_id: str, *, rows: int, columns: int) -> None:
        await self._answer("resize")
        self.process(container_id, exec_id).size = (rows, columns)

    async def pause_container(self, container_id: str) -> None:
        await self._answer("pause_container", container_id)

    async def resume_container(self, container_id: str) -> None:
        await self._answer("resume_container", container_id)

    async def update_container(self, container_id: str, resources: Mapping[str, Any]) -> None:
        await self._answer("update_container", container_id)

    async def stats_container(self, container_id: str) -> Any:
        await self._answer("stats_container", container_id)
        return {"container": container_id}

    async def oom_event(self) -> str:
        name: str = await self._until_lost(self.oom.get())  # type: ignore[arg-type]
        return name


class Machine:
    """A VM whose end ends its guest."""

    pid = 4242

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self.ended: asyncio.Future[VmExit] = asyncio.get_running_loop().create_future()

    def end(self, cause: str) -> None:
        self.guest.die()
        if not self.ended.done():
            self.ended.set_result(VmExit(cause, at_ns=99))

    async def wait(self) -> VmExit:
        return await asyncio.shield(self.ended)

    async def stop(self) -> None:
        self.end("asked to quit")

    def kill(self) -> None:
        self.end("killed")


class Starter:
    """A Vmm; ``error`` fails the boot, ``hold`` delays it."""

    def __init__(self) -> None:
        self.guest = Guest()
        self.machine = Machine(self.guest)
        self.error: Exception | None = None
        self.hold = asyncio.Event()
        self.hold.set()

    async def boot(self) -> tuple[Machine, Guest]:
        await self.hold.wait()
        if self.error is not None:
            raise self.error
        return self.machine, self.guest


class Files:
    """A host; ``fail`` makes the named step raise."""

    def __init__(self) -> None:
        self.shared: dict[str, list[object]] = {}
        self.fail: dict[str, Exception] = {}

    def directory(self, container_id: str) -> str:
        return container_id

    async def share_rootfs(self, container_id: str, rootfs: RootfsShare) -> None:
        self.shared.setdefault(container_id, []).append(rootfs)
        if "share_rootfs" in self.fail:
            raise self.fail["share_rootfs"]

    async def share(self, container_id: str, share: Share) -> None:
        self.shared.setdefault(container_id, []).append(share)

    async def undo_container(self, container_id: str) -> None:
        if "undo" in self.fail:
            raise self.fail["undo"]
        self.shared.pop(container_id, None)


class MemorySource:
    """stdin in memory."""

    def __init__(self) -> None:
        self.data: asyncio.Queue[bytes] = asyncio.Queue()
        self.taken = 0
        self.closed = False

    async def read(self) -> bytes:
        return await self.data.get()

    def took(self, count: int) -> None:
        self.taken += count

    def end(self) -> None:
        self.data.put_nowait(b"")

    def close(self) -> None:
        self.closed = True


class MemorySink:
    """stdout in memory; ``open_gate`` cleared makes it a reader that takes nothing."""

    def __init__(self) -> None:
        self.data = b""
        self.closed = False
        self.gate = asyncio.Event()
        self.gate.set()

    async def write(self, data: bytes) -> None:
        await self.gate.wait()
        self.data += data

    def close(self) -> None:
        self.closed = True


class Streams:
    """Streams by path."""

    def __init__(self) -> None:
        self.sources: dict[str, MemorySource] = {}
        self.sinks: dict[str, MemorySink] = {}
        #: Containers, with which of the sinks were closed then.
        self.settled: list[tuple[str, list[bool]]] = []

    def open_source(self, container_id: str, exec_id: str, uri: str) -> MemorySource | None:
        return self.sources.setdefault(uri, MemorySource()) if uri else None

    async def open_sinks(
        self, container_id: str, exec_id: str, stdout: str, stderr: str
    ) -> tuple[MemorySink | None, MemorySink | None]:
        return self._sink(stdout), self._sink(stderr)

    async def take_up(
        self, container_id: str, exec_id: str, stdio: Stdio
    ) -> tuple[MemorySource | None, MemorySink | None, MemorySink | None]:
        source = self.open_source(container_id, exec_id, stdio.stdin)
        return source, self._sink(stdio.stdout), self._sink(stdio.stderr)

    async def settle(self, container_id: str) -> None:
        self.settled.append((container_id, [sink.closed for sink in self.sinks.values()]))

    def has_left(self, container_id: str, exec_id: str, stdio: Stdio) -> bool:
        return False

    def _sink(self, uri: str) -> MemorySink | None:
        return self.sinks.setdefault(uri, MemorySink()) if uri else None


class Events:
    """Everything published, in order."""

    def __init__(self) -> None:
        self.all: list[Event] = []

    def publish(self, event: Event) -> None:
        self.all.append(event)

    def names(self) -> list[str]:
        return [type(event).__name__ for event in self.all]
