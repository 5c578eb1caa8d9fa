"""The daemon with a machine that is not one: a process that sleeps, and a guest behind a socket of the test's.

Run in place of ``python3 -I -m kata_shimd.daemon``; the test's guest listens at KATA_TEST_GUEST.
"""

import asyncio
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from kata_shimd import assembly, daemon
from kata_shimd.errors import VmFailed
from kata_shimd.host.process import Process, spawn
from kata_shimd.ledger import BOOT, Ledger
from kata_shimd.pod.values import VmExit
from kata_shimd.vm import machine, share, sockets, user


class Standin:
    """As much of a `Machine` as the daemon uses."""

    def __init__(self, process: Process, group: asyncio.TaskGroup) -> None:
        self._process = process
        self._end: asyncio.Future[VmExit] = asyncio.get_running_loop().create_future()
        group.create_task(self._watch(), name="qemu")

    async def _watch(self) -> None:
        try:
            await self._process.wait()
        finally:
            if self._process.returncode is None:
                self._process.forget()
        self._end.set_result(VmExit("it ended", time.time_ns()))

    @property
    def pid(self) -> int:
        return self._process.pid

    async def dial(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(os.environ["KATA_TEST_GUEST"])
        sock.setblocking(False)
        return sock

    async def wait(self) -> VmExit:
        return await asyncio.shield(self._end)

    async def stop(self) -> None:
        self.kill()
        await self.wait()

    def kill(self) -> None:
        self._process.kill()

    @property
    def ended(self) -> bool:
        return self._end.done()

    async def answers(self) -> None:
        """As QMP would: not while the process is stopped."""
        if _is_stopped(self.pid):
            await asyncio.Event().wait()

    async def settle(self) -> None:
        return None

    async def failure(self, step: str, obj: str, cause: str = "") -> VmFailed:
        return VmFailed(step, obj, cause)


def _is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


async def boot(
    _spec: Any, pod_dir: Path, ledger: Ledger, _journal: Any, gate: Any, group: Any, _budgets: Any, **_: Any
) -> Standin:
    """Everything a machine's boot puts on the host and on record, but for what runs in its processes."""
    directory = share.make(ledger, pod_dir)
    sleep = ["/usr/bin/sleep", "86400"]
    needs = (directory.record,)
    err = pod_dir / "virtiofsd.stderr"
    files = spawn(ledger, replace(gate, netns=None), sleep, what="virtiofsd", stderr=err, scope=BOOT, needs=needs)
    for name in (sockets.MONITOR, sockets.CONSOLE):
        sockets.listen(pod_dir / name).close()
    _, claimed = user.claim(ledger, pod_dir.parent.parent / "uids", pod_dir.name)
    needs = (claimed, files.record)
    process = spawn(ledger, gate, sleep, what="qemu", stderr=pod_dir / "qemu.stderr", scope=BOOT, needs=needs)
    files.forget()
    return Standin(process, group)


async def adopt(ledger: Ledger, _journal: Any, group: Any, _budgets: Any, **_: Any) -> Standin | None:
    for record in ledger.state.live.values():
        if record.fields.get("what") == "qemu" and "pid" in record.fields:
            path = ledger.pod_dir / "qemu.stderr"
            process = Process.adopt(record.n, record.fields["pid"], record.fields["start"], "qemu", path)
            if process is not None and "KATA_TEST_DEAF" in os.environ and _is_stopped(process.pid):
                raise VmFailed("connect to QMP", "qemu", "it does not answer")
            return Standin(process, group) if process is not None and await _answers(process) else None
    return None


async def _answers(process: Process) -> bool:
    """As QEMU would on its monitor: one that is still the gate was never let go, and ends."""
    while not process.exiting:
        if Path(f"/proc/{process.pid}/exe").resolve().name == "sleep":
            return True
        with suppress(TimeoutError):
            async with asyncio.timeout(0.01):
                await process.wait()
    return False


def stand_in() -> None:
    """From now on daemons of this process have such a machine; SIGHUP blocks their loop."""
    machine.boot, assembly.adopt = boot, adopt  # type: ignore[assignment]
    signal.signal(signal.SIGHUP, lambda _number, _frame: time.sleep(86400))


def note_niceness() -> None:
    """For the test to see who was let go first."""
    with Path(os.environ["KATA_TEST_GUEST"] + "-nice").open("a") as file:
        file.write(f"{os.getpriority(os.PRIO_PROCESS, 0)}\n")


if __name__ == "__main__":
    note_niceness()
    stand_in()
    daemon.main([word for word in sys.argv[1:] if word not in ("-I", "-m", "kata_shimd.daemon")])
