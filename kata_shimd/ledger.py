"""The ledger: what of this pod exists on the host, written before it is made.

One append-only file of JSON lines per pod (format: ``docs/contracts.md``). This module only records. Undoing is done by
one program, ``containerd-shim-kata-v2 undo``, for the daemon's own teardown, for containerd's ``delete`` and for a daemon
that takes over, so that there is no second teardown anywhere. Nothing may be made on the host without a record written
ahead.
"""

import errno
import json
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from kata_shimd.errors import HostFailed

NAME: Final = "ledger"
#: A line is written by one write(2); shorter than a page, it is never torn by another writer.
MAX_LINE: Final = 4096
POD: Final = "pod"
#: What a boot makes, in a scope of its own: undone as one when a daemon died over it, before the next one boots.
BOOT: Final = "boot"


class Kind(StrEnum):
    """What can exist on the host; how each is undone is in docs/contracts.md."""

    PROCESS = "process"
    MOUNT = "mount"
    DIR = "dir"
    FILE = "file"
    CGROUP = "cgroup"
    NETNS = "netns"
    LINK = "link"
    QDISC = "qdisc"
    UNIT = "unit"


class Phase(StrEnum):
    """The pod's phase; `delete` waits for a daemon that is stopping and asks one that is not."""

    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"


def container_scope(container_id: str) -> str:
    return f"container/{container_id}"


@dataclass(frozen=True, slots=True)
class Record:
    """One thing on the host: `fields` are those of its plan, joined with those of its `made` lines."""

    n: int
    kind: str
    scope: str
    needs: tuple[int, ...]
    fields: Mapping[str, Any]


@dataclass(slots=True)
class State:
    """The meaning of a ledger's lines: what lives, which phase, which values are set."""

    opened: Mapping[str, Any] = field(default_factory=dict)
    live: dict[int, Record] = field(default_factory=dict)
    phase: Phase | None = None
    values: dict[str, Any] = field(default_factory=dict)
    last: int = 0

    def apply(self, line: Mapping[str, Any]) -> None:
        """Take one line. Unknown operations are passed over: a newer version may have written them.

        :raises ValueError: a line that nobody writes; the state is as before
        """
        match line.get("op"):
            case "open":
                self.opened = MappingProxyType(dict(line))
            case "plan":
                self._plan(line)
            case "made":
                self._made(line)
            case "undone":
                self.live.pop(_number(line), None)
            case "phase":
                self.phase = Phase(str(line.get("phase")))
            case "set":
                self.values[str(line.get("key"))] = line.get("value")

    def _plan(self, line: Mapping[str, Any]) -> None:
        known = ("op", "n", "kind", "scope", "needs")
        extra = {k: v for k, v in line.items() if k not in known}
        n, needs = _number(line), line.get("needs", [])
        if not isinstance(needs, list):
            raise ValueError("needs is no list")
        record = Record(n, str(line.get("kind")), str(line.get("scope", POD)), tuple(needs), extra)
        self.live[record.n] = record
        self.last = max(self.last, record.n)

    def _made(self, line: Mapping[str, Any]) -> None:
        if (record := self.live.get(_number(line))) is not None:
            identity = {k: v for k, v in line.items() if k not in ("op", "n")}
            self.live[record.n] = Record(
                record.n, record.kind, record.scope, record.needs, {**record.fields, **identity}
            )


def _number(line: Mapping[str, Any]) -> int:
    """:raises ValueError: it has none"""
    n = line.get("n")
    if not isinstance(n, int) or isinstance(n, bool):
        raise ValueError("n is no number")
    return n


def read(pod_dir: Path) -> State:
    """Read a ledger as it stands. Lines that are no records are passed over, as `undo` passes them over: a torn one was never
    followed by its object.

    :raises HostFailed: the file cannot be read
    """
    state = State()
    try:
        data = (pod_dir / NAME).read_bytes()
    except OSError as error:
        raise HostFailed("read ledger", str(pod_dir / NAME), error.strerror or "") from error
    for line in _complete_lines(data):
        with suppress(ValueError):
            state.apply(line)
    return state


def _complete_lines(data: bytes) -> Iterator[Mapping[str, Any]]:
    for raw in data.split(b"\n")[:-1]:
        try:
            line = json.loads(raw)
        except (ValueError, RecursionError):
            continue  # torn by a crash, and finished by the newline of the next writer
        if isinstance(line, dict):
            yield line


def step(line: Mapping[str, Any]) -> str:
    """What a line is about, without what differs from pod to pod."""
    return " ".join(str(line[key]) for key in ("op", "n", "kind", "what", "phase", "key") if key in line)


class Ledger:
    """The pod's ledger, open for writing. Every method writes exactly one line before it returns.

    Two points are for tests: the process kills itself right after its ``die_at``-th line, and its ``fail_at``-th cannot be written,
    as on a full disk; ``fault`` is told before of the line (`step`). ``point`` is called after every line.
    """

    def __init__(
        self,
        pod_dir: Path,
        *,
        die_at: int | None = None,
        fail_at: int | None = None,
        fault: Callable[[str], None] = lambda _step: None,
        point: Callable[[], None] = lambda: None,
    ) -> None:
        self.pod_dir = pod_dir
        self._point = point
        self.state = read(pod_dir)
        self._die_at, self._fail_at, self._fault = die_at, fail_at, fault
        self._written = 0
        path = pod_dir / NAME
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        if not _ends_with_newline(path):
            os.write(self._fd, b"\n")

    def plan(self, kind: Kind, *, scope: str = POD, needs: Iterable[int] = (), **fields: Any) -> int:
        """Record that something is about to be made.

        :param needs: records that may only be undone after this one
        :returns: its number
        :raises HostFailed: the record could not be written, so the thing must not be made
        """
        n = self.state.last + 1
        self._append({"op": "plan", "n": n, "scope": scope, "kind": kind.value, "needs": list(needs), **fields})
        return n

    def made(self, n: int, **identity: Any) -> None:
        """Add what is known of record ``n`` only now: pid and start time, ifindex."""
        self._append({"op": "made", "n": n, **identity})

    def undone(self, n: int) -> None:
        """Record ``n`` is known to be gone by itself (a process that was reaped)."""
        self._append({"op": "undone", "n": n})

    def phase(self, phase: Phase) -> None:
        self._append({"op": "phase", "phase": phase.value})

    def set(self, key: str, value: Any) -> None:
        """State that a later daemon needs and the guest does not know."""
        self._append({"op": "set", "key": key, "value": value})

    def refresh(self) -> None:
        """Read again what `undo`, another process, has written meanwhile."""
        self.state = read(self.pod_dir)

    def close(self) -> None:
        os.close(self._fd)

    def _append(self, line: Mapping[str, Any]) -> None:
        raw = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        if len(raw) > MAX_LINE:
            raise HostFailed("write ledger", str(self.pod_dir), f"a record of {len(raw)} bytes is over {MAX_LINE}")
        try:
            written = self._write(line, raw)
        except OSError as error:
            raise HostFailed(
                "write ledger", str(self.pod_dir), error.strerror or "", hint="is the run directory full or read-only?"
            ) from error
        if written != len(raw):
            raise HostFailed("write ledger", str(self.pod_dir), "no space left", hint="free space in the run directory")
        self.state.apply(line)
        if self._written == self._die_at:
            self._fault(step(line))
            os.kill(os.getpid(), signal.SIGKILL)
        self._point()

    def _write(self, line: Mapping[str, Any], raw: bytes) -> int:
        self._written += 1
        if self._written == self._fail_at:
            self._fault(step(line))
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return os.write(self._fd, raw)


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
