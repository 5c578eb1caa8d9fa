"""One container's whole life and an exec's, each verb of it with a daemon that dies at its k-th durable step.

containerd is a client of the test's on one connection. Short form: a few steps; ``KATA_SHIMD_STEPS=60``
takes every one up to the 60th.
"""

import asyncio
import json
import os
import shutil
import socket
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest
from betterproto2 import Message

from integration.conftest import PREFIX
from integration.harness import process
from integration.harness.waiting import eventually
from integration.keeper.verbs.guest import CODE, Guest
from integration.launcher.shim import Shim
from kata_shimd import wire
from kata_shimd.api import task, wkt
from kata_shimd.ttrpc.client import Client

STANDIN: Final = Path(__file__).with_name("standin.py")
ALL: Final = int(os.environ.get("KATA_SHIMD_STEPS", "0"))
STEPS: Final = range(1, ALL + 1) if ALL else (1, 2, 3, 5, 8, 13, 20, 30)
PATIENCE: Final = 60.0
#: The daemon's record in the ledger: the launcher's second.
DAEMON: Final = 2
SERVICE: Final = "containerd.task.v2.Task"


@pytest.fixture(scope="module", autouse=True)
def module_leaves_nothing() -> None:
    """No containerd here; see `leaves_nothing`."""


@pytest.fixture(autouse=True)
def leaves_nothing() -> Iterator[None]:
    """No process outlives its test, and none survives it."""
    before = set(process.descendants())
    yield
    for left in set(process.descendants()) - before:
        left.kill()
    process.reap_orphans()


class Stage:
    """Launcher, bundle, FIFOs and guest of one life, in a directory with a short name: sockets live in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        bin_dir = root / "bin"
        bin_dir.mkdir()
        launcher = Path(shutil.copy2(PREFIX / "bin/containerd-shim-kata-v2", bin_dir))
        python = bin_dir / "python3"
        python.write_text(f'#!/bin/sh\nexec {sys.executable} {STANDIN} "$@"\n')
        python.chmod(0o755)
        self.shim = Shim(launcher, root)
        self.guest = Guest(root / "guest")
        self.die = root / "die"
        config = root / "configuration.toml"
        config.write_text('[shimd]\nkeeper = "launcher"\nkeeper_deaths = 1000\n')
        self.env = {
            "KATA_TEST_GUEST": str(root / "guest"),
            "KATA_SHIMD_DIE_FILE": str(self.die),
            "KATA_CONF_FILE": str(config),
            "PYTHONPATH": str(Path(__file__).parents[3]),
        }
        bundle = self.shim.bundle("pod")
        (bundle / "rootfs").mkdir()
        (bundle / "config.json").write_text(
            json.dumps({"ociVersion": "1.1.0", "process": {"args": ["x"], "cwd": "/"}, "root": {"path": "rootfs"}})
        )
        self.bundle = bundle
        os.mkfifo(bundle / "log")
        self.log = os.open(bundle / "log", os.O_RDWR | os.O_NONBLOCK)

    def fifos(self, name: str) -> dict[str, str]:
        paths = {stream: str(self.root / f"{name}-{stream}") for stream in ("stdin", "stdout", "stderr")}
        for path in paths.values():
            os.mkfifo(path)
        return paths

    def arm(self, k: int) -> None:
        """The daemon that lives now dies at its k-th durable step."""
        beside = self.die.with_suffix(".new")
        beside.write_text(str(k))
        beside.rename(self.die)

    def deaths(self) -> int:
        lines = map(json.loads, (self.shim.pod("pod") / "ledger").read_text().splitlines())
        return sum(line["op"] == "made" and line["n"] == DAEMON for line in lines) - 1

    def booted(self) -> bool:
        return '"booted":true' in (self.shim.pod("pod") / "state").read_text()

    def close(self) -> None:
        self.guest.close()
        os.close(self.log)


@pytest.fixture
def stage() -> Iterator[Stage]:
    with tempfile.TemporaryDirectory(prefix="kv") as root:
        made = Stage(Path(root))
        yield made
        made.close()


class Caller:
    """containerd's part."""

    def __init__(self, client: Client, stage: Stage, k: int) -> None:
        self.client, self.stage, self.k = client, stage, k

    async def ask(self, method: str, request: Message, reply: type[Message], *, armed: bool = True) -> Message:
        if armed:
            self.stage.arm(self.k)
        async with asyncio.timeout(PATIENCE):
            return wire.decode(reply, await self.client.call(SERVICE, method, wire.encode(request)))

    async def do(self, method: str, request: Message) -> None:
        await self.ask(method, request, wkt.Empty)


@asynccontextmanager
async def connected(stage: Stage) -> AsyncIterator[Client]:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(stage.shim.pod("pod") / "shim.sock"))
    async with Client(sock) as client:
        yield client


async def echoed(stage: Stage, name: str, data: bytes) -> bytes:
    """Write to stdin's FIFO, and read as much from stdout's."""
    out = os.open(stage.root / f"{name}-stdout", os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(stage.root / f"{name}-stdin", os.O_WRONLY)
    os.set_blocking(writer, False)
    got, left = b"", memoryview(data)
    try:
        async with asyncio.timeout(PATIENCE):
            while len(got) < len(data):
                try:
                    left = left[os.write(writer, left) :] if left else left
                except BlockingIOError:
                    pass
                try:
                    got += os.read(out, 1 << 16)
                except BlockingIOError:
                    pass
                await asyncio.sleep(0.005)  # both ends are polled: what is tested is at the other ends
        return got
    finally:
        os.close(out)
        os.close(writer)


async def life(stage: Stage, caller: Caller) -> None:
    """Every verb, in the order of a life; asserts what a client would."""
    init, more = stage.fifos("init"), stage.fifos("more")
    await caller.ask(
        "Create", task.CreateTaskRequest(id="pod", bundle=str(stage.bundle), **init), task.CreateTaskResponse
    )
    async with asyncio.TaskGroup() as group:
        ended = group.create_task(caller.ask("Wait", task.WaitRequest(id="pod"), task.WaitResponse, armed=False))
        await caller.ask("Start", task.StartRequest(id="pod"), task.StartResponse)
        stage.arm(caller.k)
        data = os.urandom(30_000)
        assert await echoed(stage, "init", data) == data
        spec = wkt.Any(type_url="process", value=json.dumps({"args": ["y"], "cwd": "/"}).encode())
        await caller.do("Exec", task.ExecProcessRequest(id="pod", exec_id="more", spec=spec, **more))
        await caller.ask("Start", task.StartRequest(id="pod", exec_id="more"), task.StartResponse)
        await caller.do("Kill", task.KillRequest(id="pod", exec_id="more", signal=10))
        await caller.do("Kill", task.KillRequest(id="pod", exec_id="more", signal=10))
        await caller.do("Pause", task.PauseRequest(id="pod"))
        state = await caller.ask("State", task.StateRequest(id="pod"), task.StateResponse)
        assert state.status == 4
        await caller.do("Resume", task.ResumeRequest(id="pod"))
        await caller.do("Kill", task.KillRequest(id="pod", exec_id="more", signal=9))
        end = await caller.ask("Wait", task.WaitRequest(id="pod", exec_id="more"), task.WaitResponse)
        assert end.exit_status == 137
        gone = await caller.ask("Delete", task.DeleteRequest(id="pod", exec_id="more"), task.DeleteResponse)
        assert gone.exit_status == 137
        await caller.do("CloseIO", task.CloseIoRequest(id="pod", stdin=True))
        assert (await ended).exit_status == CODE
    gone = await caller.ask("Delete", task.DeleteRequest(id="pod"), task.DeleteResponse)
    assert gone.exit_status == CODE


WANTED: Final = Counter({"create pod": 1, "start pod": 1, "exec more": 1, "signal more 10": 2, "signal more 9": 1})


@pytest.mark.parametrize("k", STEPS)
def test_every_verb_is_carried_out_once(stage: Stage, k: int) -> None:
    stage.shim.start("pod", **stage.env).ok()
    eventually("the boot", stage.booted, within=PATIENCE)

    async def body() -> int:
        async with connected(stage) as client:
            await life(stage, Caller(client, stage, k))
            deaths = stage.deaths()
            stage.die.unlink(missing_ok=True)
            await client.call(SERVICE, "Shutdown", wire.encode(task.ShutdownRequest(id="pod")), timeout=PATIENCE)
            return deaths

    deaths = asyncio.run(body())
    assert stage.guest.acts == WANTED
    assert stage.guest.sessions == 1, "the guest never saw a daemon die"
    assert deaths >= (5 if k < 10 else 0), "the kills were not where they were meant to be"


@pytest.mark.parametrize("k", STEPS)
def test_a_death_in_the_boot_is_no_failure_of_create(stage: Stage, k: int) -> None:
    stage.shim.start("pod", **stage.env).ok()
    stage.arm(k)

    async def body() -> None:
        async with connected(stage) as client:
            caller = Caller(client, stage, k)
            request = task.CreateTaskRequest(id="pod", bundle=str(stage.bundle))
            await caller.ask("Create", request, task.CreateTaskResponse, armed=False)
            stage.die.unlink(missing_ok=True)
            await caller.ask("Delete", task.DeleteRequest(id="pod"), task.DeleteResponse, armed=False)
            await client.call(SERVICE, "Shutdown", wire.encode(task.ShutdownRequest(id="pod")), timeout=PATIENCE)

    asyncio.run(body())
    assert stage.guest.acts == Counter({"create pod": 1})
