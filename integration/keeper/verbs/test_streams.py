"""Output to a logger, to a file and to a terminal, past daemons that die."""

import asyncio
import json
import os
from functools import partial
from pathlib import Path
from typing import Final

from integration.harness.waiting import eventually
from integration.keeper.verbs.client import PATIENCE, Caller, connected
from integration.keeper.verbs.guest import CODE
from integration.keeper.verbs.stage import Stage
from integration.keeper.verbs.test_ends import finish, kill, state
from kata_shimd.api import task, wkt

DEATHS: Final = 3
#: Copies each of its two inputs into a file of this very logger's.
LOGGER: Final = """\
#!/bin/sh
exec 5>&-
cat <&3 > "$2.$$.out" &
exec 3<&-
cat <&4 > "$2.$$.err"
wait
echo end > "$2.$$.end"
"""


class Typist:
    """Writes to the stdin of one process, and remembers what."""

    def __init__(self, path: str) -> None:
        self.path, self.fd, self.typed = path, -1, b""

    def begin(self) -> None:
        self.fd = os.open(self.path, os.O_WRONLY)

    def end(self) -> None:
        os.close(self.fd)

    async def type(self) -> None:
        data = os.urandom(20_000)
        self.typed += data
        await asyncio.to_thread(os.write, self.fd, data)


async def run(stage: Stage, caller: Caller, exec_id: str, typist: Typist, **stdio: str | bool) -> None:
    if not exec_id:
        create = task.CreateTaskRequest(id="pod", bundle=str(stage.bundle), **stdio)
        await caller.ask("Create", create, task.CreateTaskResponse, armed=False)
    else:
        spec = wkt.Any(type_url="process", value=json.dumps({"args": ["y"], "cwd": "/"}).encode())
        more = task.ExecProcessRequest(id="pod", exec_id=exec_id, spec=spec, **stdio)
        await caller.ask("Exec", more, wkt.Empty, armed=False)
    await caller.ask("Start", task.StartRequest(id="pod", exec_id=exec_id), task.StartResponse, armed=False)
    typist.begin()
    await typist.type()


async def end(caller: Caller, exec_id: str, typist: Typist) -> None:
    typist.end()
    await caller.ask("CloseIO", task.CloseIoRequest(id="pod", exec_id=exec_id, stdin=True), wkt.Empty, armed=False)
    ended = await caller.ask("Wait", task.WaitRequest(id="pod", exec_id=exec_id), task.WaitResponse, armed=False)
    assert ended.exit_status == CODE


async def past_deaths(stage: Stage, caller: Caller, *typists: Typist) -> None:
    for _ in range(DEATHS):
        await kill(stage, "daemon")
        for typist in typists:
            await typist.type()
        assert await state(caller) == 2


def booted(stage: Stage) -> None:
    stage.shim.start("pod", **stage.env).ok()
    eventually("the boot", stage.booted, within=PATIENCE)


def test_two_processes_with_one_logger(stage: Stage) -> None:
    """Each has a logger of its own, which is started once and gets every byte."""
    program = stage.root / "logger"
    program.write_text(LOGGER)
    program.chmod(0o755)
    uri = f"binary://{program}?to={stage.root / 'log'}"
    paths = [stage.fifos(name)["stdin"] for name in ("init", "more")]
    booted(stage)

    async def body() -> None:
        init, more = map(Typist, paths)
        async with connected(stage) as client:
            caller = Caller(client, stage, 0)
            for exec_id, typist, path in (("", init, paths[0]), ("more", more, paths[1])):
                await run(stage, caller, exec_id, typist, stdin=path, stdout=uri, stderr=uri)
            await past_deaths(stage, caller, init, more)
            await end(caller, "more", more)
            await kill(stage, "daemon")
            gone = task.DeleteRequest(id="pod", exec_id="more")
            await caller.ask("Delete", gone, task.DeleteResponse, armed=False)
            await init.type()
            await end(caller, "", init)
            await kill(stage, "daemon")
            await finish(stage, caller)
        written = sorted(path.read_bytes() for path in stage.root.glob("log.*.out"))
        assert written == sorted((init.typed, more.typed))
        assert len(list(stage.root.glob("log.*.end"))) == 2, "each came to its end"

    asyncio.run(body())


def test_a_file_goes_on(stage: Stage) -> None:
    stdin, file = stage.fifos("init")["stdin"], stage.root / "logs" / "one"
    booted(stage)

    async def body() -> None:
        typist = Typist(stdin)
        async with connected(stage) as client:
            caller = Caller(client, stage, 0)
            await run(stage, caller, "", typist, stdin=stdin, stdout=f"file://{file}", stderr=f"file://{file}")
            for _ in range(DEATHS):
                # What is on its way when a daemon dies may be lost.
                await asyncio.to_thread(eventually, "all written", partial(has, file, typist), within=PATIENCE)
                await past_deaths(stage, caller)
                await typist.type()
            await end(caller, "", typist)
            await finish(stage, caller)
        assert file.read_bytes() == typist.typed

    asyncio.run(body())


def has(file: Path, typist: Typist) -> bool:
    return len(file.read_bytes()) == len(typist.typed)


def test_a_terminal_whose_names_the_client_has_removed(stage: Stage) -> None:
    """It is resized, and it reads and writes, by what is held."""
    fifos = stage.fifos("init")
    reader = os.open(fifos["stdout"], os.O_RDWR | os.O_NONBLOCK)
    booted(stage)

    async def body() -> None:
        typist = Typist(fifos["stdin"])
        async with connected(stage) as client:
            caller = Caller(client, stage, 0)
            await run(stage, caller, "", typist, terminal=True, stdin=fifos["stdin"], stdout=fifos["stdout"])
            for path in fifos.values():
                Path(path).unlink()
            for width in range(DEATHS):
                await past_deaths(stage, caller)
                size = task.ResizePtyRequest(id="pod", width=width + 1, height=9)
                await caller.ask("ResizePty", size, wkt.Empty, armed=False)
                assert stage.guest.acts[f"resize pod 9x{width + 1}"] == 1
                await typist.type()
                assert await read(reader, len(typist.typed)) == typist.typed
                typist.typed = b""
            await end(caller, "", typist)
            await finish(stage, caller)

    asyncio.run(body())


async def read(fd: int, count: int) -> bytes:
    got = b""

    def more() -> bool:
        nonlocal got
        try:
            got += os.read(fd, 1 << 16)
        except BlockingIOError:
            pass
        return len(got) >= count

    await asyncio.to_thread(eventually, "the output", more, within=PATIENCE)
    return got
