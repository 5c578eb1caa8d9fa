"""Values of the domain: frozen, checked where they are made, free of any wire format."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from kata_shimd.errors import InvalidArgument
from kata_shimd.pod.lifecycle import State

#: containerd's identifiers: up to 76 of these (`pkg/identifiers`); they become file names, so nothing else may pass.
_ID: Final = re.compile(r"[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*")
MAX_ID: Final = 128

#: The exit status of a process whose VM or agent is lost; never 0.
LOST: Final = 255


def check_id(what: str, value: str) -> str:
    """:raises InvalidArgument: ``value`` cannot be a container or exec id"""
    if len(value) > MAX_ID or not _ID.fullmatch(value):
        raise InvalidArgument("check id", what, f"{value[:MAX_ID]!r} is no identifier")
    return value


@dataclass(frozen=True, slots=True)
class Mount:
    """containerd's Mount, as it comes with Create."""

    type: str
    source: str
    options: tuple[str, ...] = ()
    target: str = ""


@dataclass(frozen=True, slots=True)
class Stdio:
    """Paths or URIs of a process's standard streams; an empty one is not wanted."""

    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    terminal: bool = False


class Chunk(bytes):
    """Output of a process, and the number of the call that brought it; 0 where nobody counts."""

    call = 0


class Taken(int):
    """How many bytes of input a process took, and the number of the call that told; 0 where nobody counts."""

    call = 0


class Ended(int):
    """The exit status of a process as the guest told it, and when that was, in nanoseconds since the epoch; 0 where it is not told.

    ``earlier``: an earlier daemon had asked, so the answer may have been there for long.
    """

    at = 0
    earlier = False


class Told(str):
    """A container's id as the guest told it, and the number of the call that brought it; 0 where nobody counts."""

    call = 0


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended: its status (128 + n for signal n) and when, in nanoseconds since the epoch.

    ``unknown``: why the guest could not be asked for the status, or is not believed; empty where it told one.
    """

    status: int
    at_ns: int
    unknown: str = ""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What State answers about one process."""

    container_id: str
    exec_id: str
    bundle: Path
    pid: int
    state: State
    stdio: Stdio
    exit: Exit | None


@dataclass(frozen=True, slots=True)
class CreateSpec:
    """A container to create, as containerd asks for it."""

    container_id: str
    bundle: Path
    rootfs: tuple[Mount, ...]
    stdio: Stdio


@dataclass(frozen=True, slots=True)
class ExecSpec:
    """A process to add to a container. ``process`` is an OCI Process as JSON."""

    container_id: str
    exec_id: str
    stdio: Stdio
    process: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class GuestStorage:
    """A storage for the agent to mount, `kata.md` §3.5 Storage."""

    driver: str
    source: str
    fstype: str
    mount_point: str
    options: tuple[str, ...] = ()
    driver_options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Sandbox:
    """What the guest is told about the pod, `kata.md` §3.3."""

    sandbox_id: str
    hostname: str
    dns: tuple[str, ...] = ()
    storages: tuple[GuestStorage, ...] = ()
    kernel_modules: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class VmExit:
    """How the VM ended, for a sentence to the client."""

    cause: str
    at_ns: int
    detail: Mapping[str, str] = field(default_factory=dict)
