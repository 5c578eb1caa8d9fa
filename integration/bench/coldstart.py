"""A cold pod, from the spawn of `start` to the first byte its container prints, beside bare QEMU on the same kernel.

Each round boots, in turn: a pod of ours; (a) bare QEMU with the same guest, until its agent acknowledges a session;
(b) bare QEMU with the same kernel and a trivial static init, until that says it is ready.
"""

import secrets
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from integration.bench.pod import BenchPod, Timeline
from integration.bench.results import Claim, Group, Measured, Options, Series
from integration.image.machine import Boot, Machine

#: Kata's default, and ours: what a pod gets when nobody says anything.
MEMORY_MIB: Final = 2048
HELLO: Final = b"KATA-SHIMD-HELO\n"
TRIVIAL: Final = "(b) bare QEMU, same kernel, trivial init"
ACK: Final = "KATA-SHIMD-ACK0\n"


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


def measure(options: Options) -> tuple[list[Timeline], list[float], list[float]]:
    """A value a round of: a pod, (a), (b)."""
    pods: list[Timeline] = []
    guests: list[float] = []
    trivial: list[float] = []
    for _ in range(options.rounds):
        pods.append(cold_pod(options.launcher))
        guests.append(agent_ready(options.guest))
        trivial.append(trivial_ready(options.guest))
    return pods, guests, trivial


def timelines(pods: Sequence[Timeline], prefix: str = "") -> dict[str, Series]:
    """Each moment and phase of pods, in seconds."""
    values = {"`start` answered": [pod.started for pod in pods]}
    values |= {f"boot: {name}": [pod.phases[name] / 1000 for pod in pods] for name in pods[0].phases}
    values |= {"ready": [pod.ready for pod in pods], "first byte": [pod.first_byte for pod in pods]}
    return {prefix + name: Series("s", seconds) for name, seconds in values.items()}


def run(options: Options) -> Measured:
    pods, guests, trivial = measure(options)
    return {
        **timelines(pods),
        "(a) bare QEMU, same guest, agent ready": Series("s", guests),
        TRIVIAL: Series("s", trivial),
        "the guest uses": Series("MiB", [pod.used_mib for pod in pods]),
    }


GROUP: Final = Group(
    "cold-start",
    "A cold pod",
    """From the spawn of `start` to the first byte its container prints, beside bare QEMU that boots (a) the same guest until
its agent acknowledges a session and (b) the same kernel with a static init that says one word. `ready` is when the
agent has made the sandbox. What the guest uses is MemTotal − MemAvailable − page cache, the container included.""",
    run,
    (
        Claim(
            "cold pod, spawn to first byte ÷ bare QEMU to trivial init, same kernel",
            "first byte",
            TRIVIAL,
            1.6,
            limits="a guest with an agent and a root, virtio-fs, room to grow, and the container's own start: see the page",
        ),
        Claim("cold pod, spawn to ready ÷ the same", "ready", TRIVIAL, 1.3, limits="see the page"),
        Claim(
            "cold pod, spawn to ready ÷ bare QEMU with the same guest",
            "ready",
            "(a) bare QEMU, same guest, agent ready",
        ),
        Claim("cold pod, first byte ÷ ready", "first byte", "ready", 1.4),
        Claim("memory the guest uses (60 MB)", "the guest uses", aim=57),
    ),
)
