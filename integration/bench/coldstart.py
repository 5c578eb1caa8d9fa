"""A cold pod, from the spawn of `start` to the first byte its container prints, beside bare QEMU on the same kernel.

    python -m integration.bench.coldstart [--runs 11] [--quick] [--guest DIR] [--launcher FILE]

Each round boots, in turn: a pod of ours; (a) bare QEMU with the same guest, until its agent acknowledges a session; (b) bare QEMU
with the same kernel and a trivial static init, until that says it is ready. Interleaved, because the machines' speed drifts.
"""

import argparse
import os
import platform
import re
import secrets
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from integration.bench.pod import BenchPod, Timeline
from integration.harness.scale import hardware_virtualisation
from integration.image.machine import Boot, Machine

#: Kata's default, and ours: what a pod gets when nobody says anything.
MEMORY_MIB: Final = 2048
HELLO: Final = b"KATA-SHIMD-HELO\n"
ACK: Final = "KATA-SHIMD-ACK0\n"
AIMS: Final = {"ready ÷ (b)": "≤ 1.3", "first byte ÷ ready": "≤ 1.4", "MiB the guest uses": "≤ 57 (60 MB)"}


def agent_ready(guest: Path) -> float:
    """(a): seconds from QEMU's spawn to the agent's acknowledgement."""
    boot = Boot(guest / "vmlinuz", guest / "initrd.img", guest / "rootfs.img", memory=MEMORY_MIB)
    with Machine(boot) as machine:
        machine.send(HELLO + secrets.token_bytes(48))
        machine.until("port", ACK, within=60)
        return machine.age


def trivial_ready(guest: Path) -> float:
    """(b): seconds from QEMU's spawn to the trivial init's word."""
    with Machine(Boot(guest / "vmlinuz", guest / "trivial.img", memory=MEMORY_MIB)) as machine:
        machine.until("port", "ready", within=60)
        return machine.age


def cold_pod(launcher: Path) -> Timeline:
    with tempfile.TemporaryDirectory(prefix="kb-", dir="/tmp") as root, BenchPod(launcher, Path(root)) as pod:
        return pod.measure()


def row(name: str, seconds: Sequence[float]) -> str:
    low, middle, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else (seconds[0],) * 3
    return f"| {name} | {middle:.2f} | {high - low:.2f} | {len(seconds)} |"


def table(pods: Sequence[Timeline], guests: Sequence[float], trivial: Sequence[float]) -> str:
    """Median, inter-quartile range and n of each row, in seconds; ratios are medians of the rounds' own ratios."""
    phases = {name: [pod.phases[name] / 1000 for pod in pods] for name in pods[0].phases}
    rows = [
        "| what | median s | IQR s | n |",
        "| --- | --- | --- | --- |",
        row("`start` answered", [pod.started for pod in pods]),
        *(row(f"boot: {name}", seconds) for name, seconds in phases.items()),
        row("ready: the agent has made the sandbox", [pod.ready for pod in pods]),
        row("first byte of the container", [pod.first_byte for pod in pods]),
        row("(a) bare QEMU, same guest, agent ready", guests),
        row("(b) bare QEMU, same kernel, trivial init", trivial),
    ]
    return "\n".join([*rows, "", *ratios(pods, guests, trivial)])


def ratios(pods: Sequence[Timeline], guests: Sequence[float], trivial: Sequence[float]) -> list[str]:
    measured: Mapping[str, list[float]] = {
        "ready ÷ (b)": [pod.ready / bare for pod, bare in zip(pods, trivial, strict=True)],
        "ready ÷ (a)": [pod.ready / bare for pod, bare in zip(pods, guests, strict=True)],
        "first byte ÷ ready": [pod.first_byte / pod.ready for pod in pods],
        "MiB the guest uses": [pod.used_mib for pod in pods],
    }
    rows = ["| what | median | aim |", "| --- | --- | --- |"]
    return rows + [
        f"| {name} | {statistics.median(values):.2f} | {AIMS.get(name, '')} |" for name, values in measured.items()
    ]


def circumstances(guest: Path, bench: str = "coldstart") -> str:
    """What has to stand beside numbers: when, on what, with what, and how busy that was."""
    qemu = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=True).stdout
    cpu = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    facts = {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "machine": f"{os.cpu_count()} × {cpu[1] if cpu else platform.machine()}, load average {load} at the end",
        "guests run by": "KVM" if hardware_virtualisation() else "TCG",
        "versions": f"Linux {platform.release()}, {qemu.splitlines()[0]}, Python {platform.python_version()}",
        "guest": guest.resolve().name[:12],
        "command": shlex.join(["python", "-m", f"integration.bench.{bench}", *sys.argv[1:]]),
    }
    return "\n".join(f"- {name}: {value}" for name, value in facts.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=11)
    parser.add_argument("--quick", action="store_true", help="one round, to see that it works")
    parser.add_argument("--guest", type=Path, default=Path("/var/lib/kata-shimd/guest/current"))
    parser.add_argument("--launcher", type=Path, default=Path("/opt/kata-shimd/bin/containerd-shim-kata-v2"))
    arguments = parser.parse_args()
    pods: list[Timeline] = []
    guests: list[float] = []
    trivial: list[float] = []
    for _ in range(1 if arguments.quick else arguments.runs):
        pods.append(cold_pod(arguments.launcher))
        guests.append(agent_ready(arguments.guest))
        trivial.append(trivial_ready(arguments.guest))
    print(circumstances(arguments.guest), table(pods, guests, trivial), sep="\n\n")


if __name__ == "__main__":
    main()
