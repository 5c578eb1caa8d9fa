"""containerd-shim-runc-v2 with one container, which sleeps: the peer of our daemon."""

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Self

from integration.bench.guest import KEPT, POD, Guest, Shim, config
from integration.bench.results import Options, in_tmp
from integration.harness import process
from kata_shimd.api.services import task_v2
from kata_shimd.errors import ShimError


def binary() -> Path:
    found = shutil.which("containerd-shim-runc-v2")
    if found is None:
        raise FileNotFoundError("containerd-shim-runc-v2 is not on the PATH")
    return Path(found)


def open_log(bundle: Path) -> int:
    """containerd's end of the shim's log, without which runc's ends; ours to close."""
    os.mkfifo(bundle / "log", 0o700)
    return os.open(bundle / "log", os.O_RDWR)


class Runc(Shim):
    """Use as ``async with``."""

    @property
    def address(self) -> Path:
        return Path((self.root / "b" / POD / "address").read_text().removeprefix("unix://"))

    async def __aenter__(self) -> Self:
        self.write_rootfs()
        self._log = open_log(self.bundle(POD, config(KEPT, member=False)))
        self._verb("start")
        await self.connect()
        await self.create(POD)
        await self.call(task_v2.START, POD)
        #: Of the shim itself.
        self.pid: int = (await self.call(task_v2.CONNECT, POD)).shim_pid
        return self

    async def __aexit__(self, *_: object) -> None:
        shim = process.find(self.pid)
        await self.remove(POD)
        with suppress(ShimError):
            await self.call(task_v2.SHUTDOWN, POD)
        await self.disconnect()
        self._verb("-bundle", str(self.root / "b" / POD), "delete")
        if shim is not None:
            shim.kill()
        os.close(self._log)
        process.reap_orphans()

    def _verb(self, *words: str) -> None:
        self.verb(binary(), self.root / "b" / POD, *words, TTRPC_ADDRESS=str(self.root / "c.sock.ttrpc"))


@asynccontextmanager
async def beside(options: Options) -> AsyncIterator[tuple[Guest, Runc]]:
    """A pod of ours, and runc's shim."""
    with in_tmp() as ours, in_tmp() as its:
        async with Guest(options.prefix, ours) as guest, Runc(its) as runc:
            yield guest, runc
