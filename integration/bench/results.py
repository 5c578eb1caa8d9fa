"""What a benchmark brings home, and what is claimed of it."""

import os
import platform
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from integration.harness import revision
from integration.harness.scale import hardware_virtualisation

MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Options:
    """How the benchmarks are run. ``quick`` runs every part once, and is no measurement."""

    prefix: Path
    guest: Path
    rounds: int
    quick: bool = False

    @property
    def launcher(self) -> Path:
        return self.prefix / "bin/containerd-shim-kata-v2"


@dataclass(frozen=True, slots=True)
class Series:
    """Values of one thing, a value a round."""

    unit: str
    values: Sequence[float]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def quartiles(self) -> tuple[float, float, float]:
        if len(self.values) < 2:
            return (self.values[0],) * 3
        low, middle, high = statistics.quantiles(self.values, n=4)
        return low, middle, high

    @property
    def iqr(self) -> float:
        low, _, high = self.quartiles
        return high - low


Measured = Mapping[str, Series]


@dataclass(frozen=True, slots=True)
class Claim:
    """One row of the table: a series, or its ratio to a peer's of the same round, and what it should be.

    ``limits`` is what keeps it from being better, for readers.
    """

    name: str
    ours: str
    peer: str = ""
    aim: float | None = None
    at_least: bool = False
    limits: str = ""

    def of(self, measured: Measured) -> Series:
        ours = measured[self.ours]
        if not self.peer:
            return ours
        pairs = zip(ours.values, measured[self.peer].values, strict=True)
        return Series("", [mine / its for mine, its in pairs])

    def met(self, measured: Measured) -> bool | None:
        if self.aim is None:
            return None
        median = self.of(measured).median
        return median >= self.aim if self.at_least else median <= self.aim

    def aim_text(self, unit: str) -> str:
        if self.aim is None:
            return ""
        return f"{'≥' if self.at_least else '≤'} {self.aim:g}{' ' + unit if unit else ''}"


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that are measured together, and what is claimed of them. ``about`` says what is measured, and how."""

    name: str
    title: str
    about: str
    run: Callable[[Options], Measured]
    claims: tuple[Claim, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """A group's results with what has to stand beside them."""

    measured: Measured
    circumstances: Mapping[str, str]

    def data(self) -> dict[str, Any]:
        series = {name: {"unit": one.unit, "values": list(one.values)} for name, one in self.measured.items()}
        return {"circumstances": dict(self.circumstances), "series": series}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> "Outcome":
        series = {name: Series(one["unit"], one["values"]) for name, one in data["series"].items()}
        return cls(series, data["circumstances"])


def outcome(group: Group, options: Options) -> Outcome:
    """Run a group."""
    before = load()
    begin = time.monotonic()
    measured = group.run(options)
    took = time.monotonic() - begin
    facts = circumstances(options.guest)
    facts["load average"] = f"{before} before, {load()} after"
    facts["took"] = f"{took:.0f} s"
    return Outcome(measured, facts)


def load() -> str:
    return f"{os.getloadavg()[0]:.1f}"


def circumstances(guest: Path) -> dict[str, str]:
    """What has to stand beside numbers: when, on what, with what."""
    cpu = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "machine": f"{os.cpu_count()} × {cpu[1] if cpu else platform.machine()}",
        "guests run by": "KVM" if hardware_virtualisation() else "TCG",
        "versions": ", ".join([revision.own(), *_versions()]),
        "guest": guest.resolve().name[:12],
    }


def _versions() -> list[str]:
    """The first number that each program tells of itself."""
    programs = {"QEMU": "qemu-system-x86_64 --version", "containerd": "containerd --version"}
    programs |= {"runc": "runc --version", "crun": "crun --version"}
    said = {
        name: subprocess.run(words.split(), capture_output=True, text=True).stdout for name, words in programs.items()
    }
    said = {"Linux": platform.release(), **said, "Python": platform.python_version()}
    found = {name: re.search(r"\d+\.\d+(\.\d+)?", text) for name, text in said.items()}
    return [f"{name} {number[0]}" for name, number in found.items() if number]


@contextmanager
def in_tmp(place: str = "/tmp") -> Iterator[Path]:
    """A directory whose name is short: sockets are below it."""
    with tempfile.TemporaryDirectory(prefix="kb-", dir=place) as made:
        yield Path(made)
