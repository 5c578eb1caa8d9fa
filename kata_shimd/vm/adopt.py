"""A machine that another daemon booted, taken over from what is on record."""

import asyncio
from pathlib import Path
from typing import Final

from kata_shimd.errors import ShimError
from kata_shimd.host.process import Process
from kata_shimd.journal import Journal
from kata_shimd.ledger import Kind, Ledger
from kata_shimd.vm import qemu, sockets, virtiofsd
from kata_shimd.vm.channel import Channel
from kata_shimd.vm.console import Console
from kata_shimd.vm.machine import CID, CONSOLE_LOG, SECRET, Machine
from kata_shimd.vm.phases import Phases
from kata_shimd.vm.race import Ended
from kata_shimd.vm.spec import Budgets

_DEFAULT_BUDGETS: Final = Budgets()


async def adopt(
    ledger: Ledger,
    journal: Journal,
    group: asyncio.TaskGroup,
    budgets: Budgets = _DEFAULT_BUDGETS,
    *,
    console_log_bytes: int = 1 << 20,
) -> Machine | None:
    """Take over the VM that another daemon booted, from its ledger; None when its QEMU is gone.

    :raises VmFailed, HostFailed: QEMU lives and its monitor cannot be reached
    """
    pod_dir, phases = ledger.pod_dir, Phases(journal)
    process = _adopted(ledger, qemu.WHAT, pod_dir / qemu.STDERR)
    if process is None:
        return None
    console = Console(pod_dir / CONSOLE_LOG, limit=console_log_bytes)
    files = _adopted(ledger, virtiofsd.WHAT, pod_dir / virtiofsd.STDERR)
    values = ledger.state.values
    channel = Channel(pod_dir / sockets.AGENT, bytes.fromhex(values.get(SECRET, "")), values.get(CID))
    machine = Machine(pod_dir, journal, budgets, (process, files), console, channel, phases)
    machine.watch(group)
    with phases("qmp"):
        try:
            console.attach(sockets.connect(pod_dir / sockets.CONSOLE))
            await machine.connect_monitor()
        except (Ended, ShimError):
            await machine.settle()
            if not machine.ended:
                raise
    return None if machine.ended else machine


async def end_left(ledger: Ledger) -> None:
    """End the QEMU on record, by pid and start time, however little it answers; returns when it has ended."""
    process = _adopted(ledger, qemu.WHAT, ledger.pod_dir / qemu.STDERR)
    if process is not None:
        process.kill()
        await process.wait()


def _adopted(ledger: Ledger, what: str, stderr: Path) -> Process | None:
    for record in ledger.state.live.values():
        if record.kind == Kind.PROCESS and record.fields.get("what") == what and "pid" in record.fields:
            return Process.adopt(record.n, record.fields["pid"], record.fields["start"], what, stderr)
    return None
