"""``kata-shimd check``: each thing a pod needs from this host, with a verdict, why, and what to do about it.

Owns the table of checks and the forms of its answer; the checks are in ``check_*``. They look, and change nothing. Must never
happen: a verdict without a reason, a failure without a way out, or a check that ends the others.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from kata_shimd.config.load import Examined
from kata_shimd.debug.escape import one_line

SCHEMA_VERSION: Final = 1


class Verdict(StrEnum):
    """SKIP: this host's configuration does not need it, or an earlier failure makes it impossible to know."""

    PASS = "pass"
    FAIL = "fail"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class Row:
    """One answer. A ``fix`` of a pass is advice."""

    name: str
    verdict: Verdict
    why: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a program said: its exit status (None: it could not be run, or took too long), stdout, or why not."""

    status: int | None
    said: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Where the checks look; tests give other places. What only the VM's side knows comes as functions.

    ``accelerator`` gives the accelerator's name for a setting, and why; ``virtiofsd`` the flavour for a version text.
    """

    config: Examined
    run_dir: Path
    version: str
    path: str
    ask: Callable[[Sequence[str | Path]], Answer]
    accelerator: Callable[[str], tuple[str, str]]
    virtiofsd: Callable[[str], str]
    kvm_obstacle: Callable[[], str]
    transport: str
    devices: tuple[str, ...]
    proc: Path = Path("/proc")
    dev: Path = Path("/dev")
    cgroup: Path = Path("/sys/fs/cgroup")
    #: Of systemd: what is there when it is the first process, where units lie, and what the pods' template says in this version.
    booted: Path = Path("/run/systemd/system")
    unit_places: tuple[Path, ...] = tuple(
        Path(place, "systemd/system") for place in ("/etc", "/run", "/usr/local/lib", "/usr/lib", "/lib")
    )
    unit: str = ""


Check = Callable[[Scene], Iterator[Row]]


def run(scene: Scene, checks: Mapping[str, Check]) -> tuple[Row, ...]:
    """Every check's rows; a check that the host makes impossible fails by itself only."""
    return tuple(row for name, check in checks.items() for row in _rows(scene, name, check))


def _rows(scene: Scene, name: str, check: Check) -> Iterator[Row]:
    try:
        yield from check(scene)
    except OSError as error:
        yield Row(name, Verdict.FAIL, f"{error.filename or name}: {error.strerror or error}", "run as root")


def failed(rows: Sequence[Row]) -> bool:
    return any(row.verdict is Verdict.FAIL for row in rows)


def as_table(rows: Sequence[Row]) -> str:
    width = max((len(row.name) for row in rows), default=0)
    lines = [line for row in rows for line in _lines(row, width)]
    counts = {verdict: sum(row.verdict is verdict for row in rows) for verdict in Verdict}
    lines.append(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    return "\n".join(lines) + "\n"


def _lines(row: Row, width: int) -> Iterator[str]:
    yield f"{row.verdict:<4}  {row.name:<{width}}  {one_line(row.why)}"
    if row.fix:
        yield f"{'':4}  {'':{width}}  → {one_line(row.fix)}"


def as_json(rows: Sequence[Row]) -> str:
    checks = [{"name": row.name, "verdict": str(row.verdict), "why": row.why, "fix": row.fix} for row in rows]
    return json.dumps({"schema_version": SCHEMA_VERSION, "ok": not failed(rows), "checks": checks}, indent=2) + "\n"
