"""A real pod, agent client and host stdio in front of a hostile guest; only QEMU and the mounts are stood in for."""

import asyncio
import json
import os
import resource
import socket
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

from integration.hostile.agent.guest import Answer, Hostile
from kata_shimd.agent.client import AgentClient, Deadlines
from kata_shimd.api import task
from kata_shimd.durable.caller import DurableClient
from kata_shimd.durable.memory import new
from kata_shimd.durable.tape import HEAD, Tape
from kata_shimd.host.stdio import HostStreams
from kata_shimd.pod import testing
from kata_shimd.pod.pod import Pod
from kata_shimd.pod.ports import South
from kata_shimd.pod.process import Budgets
from kata_shimd.pod.values import CreateSpec, ExecSpec, Stdio
from kata_shimd.survive import key_of
from kata_shimd.task import translate
from kata_shimd.task.service import TaskService
from kata_shimd.ttrpc import Client

#: Seconds; the sum of those that one verb can meet is far below `ENDS`.
DEADLINES: Final = Deadlines(check=0.2, create_sandbox=0.2, create_container=0.2, usual=0.2)
BUDGETS: Final = Budgets(
    kill=0.2, drain=0.2, no_progress=0.2, execs_end=0.1, last_stats=0.1, stop=0.2, create_wait=60, health_interval=60,
    follows=0.05,
)  # fmt: skip
#: Every RPC but Wait has ended by then.
ENDS: Final = 5.0
#: State's, at any moment.
STATE_ENDS: Final = 2.0
#: Seconds between two questions for State.
_OFTEN: Final = 0.02
_PROCESS: Final = {"args": ["sh"], "cwd": "/"}


class Stage:
    """One pod; verbs by short names, each of which must end within `ENDS`."""

    def __init__(
        self, group: asyncio.TaskGroup, tmp: Path, guest: Hostile, client: AgentClient, budgets: Budgets
    ) -> None:
        self.tmp, self.guest = tmp, guest
        self.vm = testing.Machine(guest)  # type: ignore[arg-type]  # dies as a guest does
        self.events, self.files = testing.Events(), testing.Files()
        self.notes: list[tuple[str, Mapping[str, Any]]] = []
        south = South(_Booted(self.vm, client), self.files, HostStreams(_no_logger, _no_loggers), self.events)
        self.pod = Pod(south, group, budgets, note=lambda event, **fields: self.notes.append((event, fields)))
        self.service = TaskService(self.pod)
        #: The longest that State had to wait for its turn so far, in seconds.
        self.slowest_state = 0.0
        self.pod.begin()

    def fifo(self, name: str) -> Path:
        path = self.tmp / name
        if not path.exists():
            os.mkfifo(path, 0o600)
        return path

    async def create(self, stdio: Stdio | None = None, name: str = "c1") -> None:
        bundle = self.tmp / name
        (bundle / "rootfs").mkdir(parents=True)
        (bundle / "config.json").write_text(json.dumps({"process": _PROCESS, "root": {"path": "rootfs"}}))
        async with asyncio.timeout(ENDS):
            await self.pod.create(CreateSpec(name, bundle, (), stdio or Stdio()))

    async def running(self, stdio: Stdio | None = None) -> None:
        await self.create(stdio)
        async with asyncio.timeout(ENDS):
            await self.pod.start("c1", "")

    async def exec(self) -> None:
        """With a terminal, so that it has a size."""
        async with asyncio.timeout(ENDS):
            await self.pod.exec(ExecSpec("c1", "e1", Stdio(terminal=True), _PROCESS))
            await self.pod.start("c1", "e1")

    def state(self) -> task.StateResponse:
        return translate.state_response(self.service.state(task.StateRequest(id="c1")))

    async def ask_state(self) -> None:
        """Ask State again and again, as a client of containerd's may, until cancelled; what counts is when it gets its turn."""
        while True:
            begin = time.monotonic()
            await asyncio.sleep(_OFTEN)
            if "c1" in self.pod.containers:
                self.state()
            self.slowest_state = max(self.slowest_state, time.monotonic() - begin - _OFTEN)

    async def kill(self, number: int = 9) -> None:
        async with asyncio.timeout(ENDS):
            await self.pod.kill("c1", "", number, everyone=True)

    async def exit(self) -> int:
        """The status that containerd's Wait is told."""
        async with asyncio.timeout(ENDS):
            return (await self.pod.container("c1").init.wait()).status

    async def delete(self) -> None:
        async with asyncio.timeout(ENDS):
            await self.pod.delete("c1")

    def noted(self, event: str) -> bool:
        return any(name == event for name, _ in self.notes)


class _Kept(AgentClient):
    """Its calls are in a journal, as with a keeper."""

    def __init__(self, sock: socket.socket, deadlines: Deadlines) -> None:
        self._tape = Tape(new(HEAD))
        super().__init__(sock, deadlines)

    def _connect(self, sock: socket.socket) -> Client:
        durable = partial(DurableClient, barrier=lambda: None, key_of=key_of, consumed=())
        return durable(sock, self._tape, on_lost=self._lost)

    def close(self) -> None:
        super().close()
        self._tape.close()


class _Booted:
    """A Vmm whose machine is up."""

    def __init__(self, vm: testing.Machine, client: AgentClient) -> None:
        self._vm, self._client = vm, client

    async def boot(self) -> tuple[Any, AgentClient]:
        return self._vm, self._client


async def _no_logger(_container: str, _uri: str) -> Any:
    raise AssertionError("no test here asks for a logger")


async def _no_loggers(_container: str) -> None:
    pass


@asynccontextmanager
async def staged(
    tmp: Path,
    answers: Mapping[str, Answer] | None = None,
    otherwise: Answer | None = None,
    *,
    budgets: Budgets = BUDGETS,
    deadlines: Deadlines = DEADLINES,
    kept: bool = False,
) -> AsyncIterator[Stage]:
    """A stage until the block is left; what the pod still does is then ended, as the daemon's end ends it.

    ``kept``: the channel is one that would outlive the daemon, in a journal.
    """

    class Left(Exception):
        pass

    ours, theirs = socket.socketpair()
    guest = Hostile(theirs, answers or {}, otherwise)
    client = _Kept(ours, deadlines) if kept else AgentClient(ours, deadlines)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(guest.run(), name="guest")
            stage = Stage(group, tmp, guest, client, budgets)
            group.create_task(stage.ask_state(), name="ask state")
            yield stage
            assert stage.slowest_state < STATE_ENDS
            raise Left
    except* Left:
        pass
    finally:
        client.close()
        theirs.close()


class Cost:
    """Memory and processor time since it was made."""

    def __init__(self) -> None:
        self._rss, self._cpu = _rss(), time.process_time()

    @property
    def megabytes(self) -> float:
        """By how much the resident memory has grown."""
        return (_rss() - self._rss) / (1 << 20)

    @property
    def cpu(self) -> float:
        """Seconds of processor time."""
        return time.process_time() - self._cpu


def _rss() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
