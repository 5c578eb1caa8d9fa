"""What a run found: differences, each kind once; which rules held where, and which never; what the sequences consisted of.

A run on record (`LAST_RUN`) is what `page` shows as the last one.
"""

import json
import platform
import re
import subprocess
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from integration.differential.explore import Verdict
from integration.differential.intended import RULES
from integration.differential.shim import Kind
from integration.differential.steps import Rpc, Sequence, cases
from integration.harness import revision
from kata_shimd import __version__

LAST_RUN: Final = Path(__file__).with_name("last_run.json")
#: What is asked for its version, and with which words.
PROGRAMS: Final = {
    "containerd-shim-runc-v2": ("containerd-shim-runc-v2", "-v"),
    "runc": ("runc", "--version"),
    "QEMU": ("qemu-system-x86_64", "--version"),
}


class Incomplete(ValueError):
    """A run that is no measure of anything."""


@dataclass(slots=True)
class Report:
    """Everything that is counted. ``kind``: the shim that is compared with runc's."""

    kind: Kind
    done: int = 0
    #: Of those, how many were kept sequences and not fresh ones.
    kept: int = 0
    differing: int = 0
    kinds: Counter[tuple[str, ...]] = field(default_factory=Counter)
    rules: Counter[str] = field(default_factory=Counter)
    situations: Counter[tuple[str, str]] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    services: Counter[str] = field(default_factory=Counter)
    steps: Counter[str] = field(default_factory=Counter)

    def add(self, sequence: Sequence, verdict: Verdict) -> bool:
        """Count one; whether its first difference is of a kind that was not there before."""
        self.done += 1
        self.kept += not sequence.name.startswith("seed ")
        self._count(sequence)
        self.rules.update({name for name, _ in verdict.used})
        self.situations.update(verdict.used)
        if not verdict.differences:
            return False
        self.differing += 1
        first = verdict.differences[0].kind
        self.kinds[first] += 1
        return self.kinds[first] == 1

    def _count(self, sequence: Sequence) -> None:
        self.services[self.kind.service(sequence.name)] += 1
        for step in sequence.steps:
            self.steps["all"] += 1
            self.steps["of several calls at once"] += len(step.calls) > 1
            self.steps["whose outcome is open"] += step.open
            self.steps["with an exit"] += any(wanted.startswith("exit ") for wanted in step.until)
            self.calls.update(str(call.rpc) for call in step.calls if call.rpc is not Rpc.END)

    def unused(self) -> list[str]:
        """The rules that explained nothing."""
        return [name for name in dict.fromkeys(rule.name for rule in RULES) if name not in self.rules]

    def lines(self, *, situations: bool) -> list[str]:
        """For people."""
        lines = [f"{self.done} sequences, {self.differing} with unintended differences"]
        lines += [f"{number:6} × {' | '.join(filter(None, kind))}" for kind, number in self.kinds.most_common()]
        for title, counted in (("steps", self.steps), ("calls", self.calls), ("called as", self.services)):
            lines.append(f"{title}: " + ", ".join(f"{number} {name}" for name, number in counted.most_common()))
        lines += [f"{number:6} × intended: {name}" for name, number in self.rules.most_common()]
        lines += [f"     0 × intended: {name}" for name in self.unused()]
        if situations:
            lines += [f"{number:6} × {name}: {where}" for (name, where), number in sorted(self.situations.items())]
        return lines

    def record(self, first: str, seconds: float) -> dict[str, Any]:
        """What `page` shows of it.

        :raises Incomplete: a kept sequence was left out
        """
        if self.kept != (there := len(cases())):
            raise Incomplete(f"{self.kept} of {there} kept sequences were replayed: only a run of all goes on record")
        return {
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "sequences": self.done,
            "kept": self.kept,
            "unexplained": self.differing,
            "first": first,
            "minutes": round(seconds / 60),
            "versions": versions(),
            "steps": dict(self.steps),
            "calls": dict(self.calls.most_common()),
            "services": dict(self.services),
            "rules": {name: self.rules[name] for name in dict.fromkeys(rule.name for rule in RULES)},
        }


def write(record: dict[str, Any], path: Path = LAST_RUN) -> None:
    path.write_text(json.dumps(record, indent=1) + "\n")


def versions() -> dict[str, str]:
    """Of the programs that a run compares; a program that does not answer is left out."""
    own = f"{__version__} ({revision.revision()})"
    found = {"kata-shimd": own, "Python": platform.python_version(), "Linux": platform.release()}
    for name, argv in PROGRAMS.items():
        said = subprocess.run(argv, capture_output=True, text=True, check=False).stdout
        if number := re.search(r"\d+\.\d+\.\d+[\w.~+-]*", said):
            found[name] = number[0]
    return found
