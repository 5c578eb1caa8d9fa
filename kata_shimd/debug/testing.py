"""Journals and ledgers as data, for tests of what reads them."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

BEGIN_NS: Final = 1_750_000_000_000_000_000
POD: Final = "0123456789abcdef0123"

#: An event: its name, and its fields. They are a tenth of a second apart.
Event = tuple[str, Mapping[str, Any]]


def event(name: str, /, **fields: Any) -> Event:
    return name, fields


DAEMON: Final = event("daemon", pid=42, namespace="k8s.io", id="sandbox-1", head=True)
#: Another that goes on where it was.
SUCCESSOR: Final = event("daemon", pid=43, namespace="k8s.io", id="sandbox-1", head=True, later=True)
#: What every boot that succeeds writes.
BOOTED: Final = (
    DAEMON,
    event("accelerator", choice="tcg", why="/dev/kvm: No such file or directory"),
    event("boot-phase", phase="spawn", ms=12.5),
    event("boot-phase", phase="qmp", ms=80.1),
    event("boot-phase", phase="dial", ms=2400.0),
    event("agent-ready"),
)


def as_read(events: Iterable[Event]) -> list[dict[str, Any]]:
    """As `journal.read` returns them."""
    return [{"t": BEGIN_NS + 10**8 * index, "event": name, **fields} for index, (name, fields) in enumerate(events)]


def write_journal(run_dir: Path, events: Iterable[Event], pod: str = POD) -> Path:
    path = run_dir / "journal" / f"{pod}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(item, separators=(",", ":")) + "\n" for item in as_read(events))
    path.write_text("".join(lines))
    return path


def write_ledger(run_dir: Path, *lines: Mapping[str, Any], pod: str = POD, sandbox_id: str = "sandbox-1") -> Path:
    """A pod's directory with a ledger of these lines after the first one."""
    path = run_dir / "pods" / pod / "ledger"
    path.parent.mkdir(parents=True, exist_ok=True)
    address = "/run/containerd/containerd.sock"
    opened = {"op": "open", "v": 1, "pod": pod, "namespace": "k8s.io", "id": sandbox_id, "address": address}
    path.write_text("".join(json.dumps(line) + "\n" for line in (opened, *lines)))
    return path


def process_lines(n: int, what: str, pid: int, start: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """A process that is on record and was let go."""
    return (
        {"op": "plan", "n": n, "scope": "pod", "kind": "process", "what": what},
        {"op": "made", "n": n, "pid": pid, "start": start},
    )
