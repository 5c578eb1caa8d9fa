"""What a daemon does when nobody asks it anything: processor time of all its threads, beside runc's shim, in the same seconds."""

import asyncio
from pathlib import Path
from typing import Final

from integration.bench.guest import numbered
from integration.bench.results import Claim, Group, Measured, Options, Series
from integration.bench.runc import beside

#: Seconds of one window.
WINDOW: Final = 6.0


def processor_ns(pid: int) -> int:
    """Nanoseconds on a processor, of all threads that there are."""
    return sum(int(task.read_text().split()[0]) for task in Path(f"/proc/{pid}/task").glob("*/schedstat"))


async def measure(options: Options) -> dict[str, list[float]]:
    """Per cent of one processor, in each window."""
    window = 0.2 if options.quick else WINDOW
    async with beside(options) as (guest, runc):
        pids = {
            "daemon": guest.pod.process("daemon").pid,
            "runc's shim": runc.pid,
            "QEMU": guest.pod.process("qemu").pid,
        }
        shares = numbered(pids)
        await asyncio.sleep(window)  # what the container's start left to do
        for _ in range(options.rounds):
            before = {name: processor_ns(pid) for name, pid in pids.items()}
            await asyncio.sleep(window)
            for name, pid in pids.items():
                shares[name].append((processor_ns(pid) - before[name]) / (window * 1e9) * 100)
    return shares


def run(options: Options) -> Measured:
    return {name: Series("%", values) for name, values in asyncio.run(measure(options)).items()}


GROUP: Final = Group(
    "idle",
    "Idle",
    f"""Processor time of a pod that has one sleeping container and is asked nothing, by `/proc/PID/task/*/schedstat`, in
windows of {WINDOW:g} s, in per cent of one processor; beside containerd-shim-runc-v2 in the same windows. There is no
containerd, so either has events that it cannot deliver; runc's shim may be busy with that.""",
    run,
    (
        Claim("idle CPU of a daemon", "daemon", aim=0.1),
        Claim("idle CPU of runc's shim", "runc's shim"),
        Claim("idle CPU of QEMU", "QEMU"),
    ),
)
