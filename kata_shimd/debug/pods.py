"""The pods of this host, live and dead, as ledgers and journals know them.

A live pod has a directory with a ledger; a dead one is only its journal. Pods are named by people, who know the sandbox or a
container and seldom the hash: any of the three will do, or its beginning. Must never happen: a pod that is chosen by guess.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from kata_shimd import journal, ledger
from kata_shimd.debug.story import BEGINS, last_life
from kata_shimd.errors import HostFailed, InvalidArgument, NotFound

DAEMON: Final = "daemon"
QEMU: Final = "qemu"
_CONTAINER: Final = ledger.container_scope("")
#: The events that say who the pod is; the others of a long journal need not be parsed for that.
_WHO: Final = (b'"event":"daemon"', b'"event":"created"', b'"event":"deleted"', b'"event":"refused"')


class Phase(StrEnum):
    """The ledger's phases, and two more. CRASHED: no daemon lives, and `delete` has not come yet."""

    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    CRASHED = "crashed"
    ENDED = "ended"


class Ambiguous(InvalidArgument):
    """A name that fits several pods; ``pods`` are they."""

    def __init__(self, name: str, pods: "tuple[Pod, ...]") -> None:
        self.pods = pods
        super().__init__("find pod", name, f"{len(pods)} pods match", hint="give more of the name, or the pod's hash")


@dataclass(frozen=True, slots=True)
class Process:
    """A process in the ledger. ``alive`` is about this very process, not about one that got its pid later."""

    what: str
    pid: int
    alive: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """One pod. ``name`` is its hash; ``began_ns`` None when nothing tells.

    ``containers`` are those that it has, or ever had once it has ended; ``deleted`` those that a live one had.
    """

    name: str
    run_dir: Path
    sandbox_id: str
    namespace: str
    address: str
    phase: Phase
    processes: tuple[Process, ...]
    containers: tuple[str, ...]
    deleted: tuple[str, ...]
    began_ns: int | None

    @property
    def directory(self) -> Path:
        return self.run_dir / "pods" / self.name

    @property
    def journal(self) -> Path:
        return self.run_dir / "journal" / f"{self.name}.jsonl"

    @property
    def live(self) -> bool:
        """Whether there is anything of it but its journal."""
        return self.phase is not Phase.ENDED

    def process(self, what: str) -> Process | None:
        return next((process for process in self.processes if process.what == what), None)

    def names(self) -> tuple[str, ...]:
        return (self.sandbox_id, self.name, *self.containers, *self.deleted)

    def container(self, name: str) -> str:
        """The container that `find` was told, whole or its beginning; empty when ``name`` means the pod, or fits several."""
        containers = {*self.containers, *self.deleted} - {self.sandbox_id, self.name}
        if name in containers:
            return name
        if any(known.startswith(name) for known in (self.sandbox_id, self.name)):
            return ""
        found = [known for known in containers if known.startswith(name)]
        return found[0] if len(found) == 1 else ""


def every(run_dir: Path) -> tuple[Pod, ...]:
    """All pods, the youngest first."""
    names = {path.name for path in _entries(run_dir / "pods")}
    names |= {path.stem for path in _entries(run_dir / "journal") if path.suffix == ".jsonl"}
    pods = (load(run_dir, name) for name in names)
    return tuple(sorted(pods, key=lambda pod: (pod.live, pod.began_ns or 0, pod.name), reverse=True))


def find(run_dir: Path, name: str) -> Pod:
    """The pod that ``name`` means: a sandbox or container id or a pod's hash, or the beginning of one.

    :raises NotFound: there is none
    :raises Ambiguous: several fit, and none exactly
    """
    pods = every(run_dir)
    exactly = tuple(pod for pod in pods if name in pod.names())
    found = exactly or tuple(pod for pod in pods if any(known.startswith(name) for known in pod.names()))
    if not found or not name:
        raise NotFound("find pod", name, f"nothing of it in {run_dir}", hint="see `kata-shimd ps --all`")
    if len(found) > 1:
        raise Ambiguous(name, found)
    return found[0]


def load(run_dir: Path, name: str) -> Pod:
    """What is known of the pod with the hash ``name``."""
    state = _ledger(run_dir / "pods" / name)
    who = list(_who(run_dir / "journal" / f"{name}.jsonl"))
    daemon: Mapping[str, Any] = next((event for event in reversed(who) if event["event"] == "daemon"), {})
    containers, deleted = _containers(state, last_life(who))
    told = daemon or next((event for event in reversed(who) if event["event"] == "refused"), {})
    identity = state.opened if state is not None and state.opened else told
    return Pod(
        name=name,
        run_dir=run_dir,
        sandbox_id=str(identity.get("id", "")),
        namespace=str(identity.get("namespace", "")),
        address=str(identity.get("address", "")),
        phase=_phase(state),
        processes=_processes(state),
        containers=containers,
        deleted=deleted,
        began_ns=_began(_first_daemon(who) or told, run_dir / "pods" / name),
    )


def _phase(state: ledger.State | None) -> Phase:
    if state is None:
        return Phase.ENDED
    daemon = next((process for process in _processes(state) if process.what == DAEMON), None)
    if daemon is not None and not daemon.alive:
        return Phase.CRASHED
    return Phase(state.phase.value) if state.phase else Phase.STARTING


def _ledger(pod_dir: Path) -> ledger.State | None:
    """The pod's ledger, an empty one when it has a directory but no readable ledger, None without a directory."""
    try:
        return ledger.read(pod_dir)
    except HostFailed:
        return ledger.State() if pod_dir.is_dir() else None


def _processes(state: ledger.State | None) -> tuple[Process, ...]:
    records = state.live.values() if state else ()
    found = (record.fields for record in records if record.kind == ledger.Kind.PROCESS and "pid" in record.fields)
    return tuple(
        Process(str(fields.get("what", "")), fields["pid"], _alive(fields["pid"], fields.get("start")))
        for fields in found
    )


def _alive(pid: int, start: int | None) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    # Field 2, the command, may hold anything; what follows its last bracket is fields 3 (state) and on, 22 is the start time.
    fields = stat[stat.rindex(b")") + 2 :].split()
    return fields[0] not in (b"Z", b"X") and int(fields[19]) == start


def _containers(
    state: ledger.State | None, life: Sequence[Mapping[str, Any]]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """In the order in which they were made, those that are there and those that were deleted; of a pod that has ended, all."""
    scopes = (record.scope for record in state.live.values()) if state else ()
    recorded = (scope.removeprefix(_CONTAINER) for scope in scopes if scope.startswith(_CONTAINER))
    #: Name → whether it is there; the same name may be used again.
    there: dict[str, bool] = {}
    for event in life:
        if event["event"] in ("created", "deleted") and not event.get("exec"):
            there[str(event.get("container", ""))] = event["event"] == "created" or state is None
        elif event["event"] == "refused":
            there.setdefault(str(event.get("container", "")), state is None)
    there |= dict.fromkeys(recorded, True)
    there.pop("", None)
    return tuple(name for name in there if there[name]), tuple(name for name in there if not there[name])


def _first_daemon(who: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Of the last life, as far back as the journal goes."""
    return next((event for event in last_life(who) if event["event"] == BEGINS), {})


def _began(daemon: Mapping[str, Any], pod_dir: Path) -> int | None:
    if isinstance(at := daemon.get("t"), int):
        return at
    try:
        return pod_dir.stat().st_mtime_ns
    except OSError:
        return None


def _who(path: Path) -> Iterator[Mapping[str, Any]]:
    """Each line once: the first one of a life is repeated at the head of every file."""
    lines: dict[bytes, None] = {}
    for file in journal.files(path):
        try:
            lines |= dict.fromkeys(
                line for line in file.read_bytes().splitlines() if any(mark in line for mark in _WHO)
            )
        except OSError:
            continue
    yield from (event for line in lines if (event := _parsed(line)))


def _parsed(line: bytes) -> Mapping[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None


def _entries(directory: Path) -> list[Path]:
    """:raises HostFailed: it is there and cannot be read, so "no pods" would be a lie"""
    try:
        return [Path(entry.path) for entry in os.scandir(directory)]
    except FileNotFoundError:
        return []
    except OSError as error:
        hint = "run as root" if isinstance(error, PermissionError) else "is --run-dir right?"
        raise HostFailed("list pods", str(directory), error.strerror or "", hint=hint) from error
