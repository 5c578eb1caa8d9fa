"""A pod with its south in memory, for every test of the pod's rules."""

import asyncio
import json
from collections.abc import Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from kata_shimd.pod import testing
from kata_shimd.pod.lifecycle import State
from kata_shimd.pod.pod import Pod
from kata_shimd.pod.ports import South
from kata_shimd.pod.process import Budgets
from kata_shimd.pod.values import CreateSpec, ExecSpec, Stdio

BUDGETS = Budgets(
    kill=0.05, drain=0.2, no_progress=0.05, execs_end=0.1, last_stats=0.1, stop=0.1, create_wait=60, health_interval=60,
    follows=0.05,
)  # fmt: skip
NO_STDIO = Stdio()
PROCESS = {"args": ["true"], "cwd": "/"}


class World:
    """A pod with its south, and the shortest way to say what a test does."""

    def __init__(self, group: asyncio.TaskGroup, tmp: Path, budgets: Budgets) -> None:
        self.tmp = tmp
        self.starter, self.files, self.streams, self.events = (
            testing.Starter(), testing.Files(), testing.Streams(), testing.Events(),
        )  # fmt: skip
        self.notes: list[str] = []
        south = South(self.starter, self.files, self.streams, self.events)
        self.on_stopping: Callable[[], None] = lambda: None
        self.pod = Pod(
            south,
            group,
            budgets,
            note=lambda event, **_: self.notes.append(event),
            on_stopping=lambda: self.on_stopping(),
        )

    @property
    def guest(self) -> testing.Guest:
        return self.starter.guest

    async def create(self, name: str = "c1", kind: str | None = None, stdio: Stdio = NO_STDIO) -> int:
        bundle = self.tmp / name
        (bundle / "rootfs").mkdir(parents=True, exist_ok=True)
        notes = {"io.kubernetes.cri.container-type": kind} if kind else {}
        (bundle / "config.json").write_text(
            json.dumps({"process": PROCESS, "root": {"path": "rootfs"}, "annotations": notes})
        )
        return await self.pod.create(CreateSpec(name, bundle, (), stdio))

    async def running(self, name: str = "c1", kind: str | None = None, stdio: Stdio = NO_STDIO) -> None:
        await self.create(name, kind, stdio)
        await self.pod.start(name, "")

    async def exec(self, exec_id: str = "e1", stdio: Stdio = NO_STDIO) -> None:
        await self.pod.exec(ExecSpec("c1", exec_id, stdio, PROCESS))

    def state(self, name: str = "c1", exec_id: str = "") -> State:
        return self.pod.container(name).process(exec_id).life.state


@pytest.fixture
def world(tmp_path):
    @asynccontextmanager
    async def make(budgets=BUDGETS, begin=True):
        class Done(Exception):
            pass

        try:
            async with asyncio.TaskGroup() as group:
                world = World(group, tmp_path, budgets)
                if begin:
                    world.pod.begin()
                yield world
                raise Done
        except* Done:
            pass

    return make
