"""What the pod tells containerd, in the order it happened (`containerd.md` §1.11)."""

from dataclasses import dataclass
from pathlib import Path

from kata_shimd.pod.values import Exit, Mount, Stdio


@dataclass(frozen=True, slots=True)
class Created:
    container_id: str
    bundle: Path
    rootfs: tuple[Mount, ...]
    stdio: Stdio
    pid: int


@dataclass(frozen=True, slots=True)
class Started:
    container_id: str
    pid: int


@dataclass(frozen=True, slots=True)
class ExecAdded:
    container_id: str
    exec_id: str


@dataclass(frozen=True, slots=True)
class ExecStarted:
    container_id: str
    exec_id: str
    pid: int


@dataclass(frozen=True, slots=True)
class Exited:
    """``process_id`` is the container id for init and the exec id for an exec: CRI looks up by it."""

    container_id: str
    process_id: str
    pid: int
    exit: Exit


@dataclass(frozen=True, slots=True)
class Deleted:
    """``exec_id`` is empty for a container."""

    container_id: str
    exec_id: str
    pid: int
    exit: Exit


@dataclass(frozen=True, slots=True)
class Paused:
    container_id: str


@dataclass(frozen=True, slots=True)
class Resumed:
    container_id: str


@dataclass(frozen=True, slots=True)
class OutOfMemory:
    container_id: str


Event = Created | Started | ExecAdded | ExecStarted | Exited | Deleted | Paused | Resumed | OutOfMemory
