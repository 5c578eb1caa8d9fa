"""What the last long run of each target did, kept beside the targets as ``results.json`` and shown by `page`."""

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final

from integration.fuzz.engine import Outcome
from integration.harness import revision

#: How many inputs the long form is.
WANTED: Final = 1_000_000
_FILE: Final = Path(__file__).parent / "results.json"
_LIBRARIES: Final = ("betterproto2", "qemu.qmp")


@dataclass(frozen=True, slots=True)
class Result:
    """``finding`` is empty when nothing was found; ``versions`` is one text, ours first."""

    target: str
    seed: int
    taken: int
    refused: int
    seconds: int
    finding: str
    date: str
    versions: str

    @classmethod
    def of(cls, target: str, seed: int, done: Outcome, finding: str = "") -> "Result":
        today = datetime.now(UTC).date().isoformat()
        return cls(target, seed, done.taken, done.refused, round(done.seconds), finding, today, versions())

    @property
    def inputs(self) -> int:
        return self.taken + self.refused


def versions() -> str:
    """Of all that a finding could depend on."""
    own = f"{revision.own()}, Python {platform.python_version()}"
    return ", ".join((own, *(f"{name} {version(name)}" for name in _LIBRARIES)))


def kept() -> Mapping[str, Result]:
    """The last result of each target that was ever run, by name."""
    return {line["target"]: Result(**line) for line in json.loads(_FILE.read_text())} if _FILE.exists() else {}


def keep(result: Result) -> None:
    """In place of the target's last one."""
    every = {**kept(), result.target: result}
    lines = ",\n".join(json.dumps(asdict(every[name])) for name in sorted(every))
    _FILE.write_text(f"[\n{lines}\n]\n")
