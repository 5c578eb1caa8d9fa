"""What is known of a VM that does not do what it should, in one sentence (`users.md` §1, pains 3, 9, 24)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

_LINES: Final = 6


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """``cause`` is why QEMU ended, ``status`` what its monitor said while it lives, ``phases`` seconds by boot phase."""

    alive: bool
    cause: str
    status: str
    stderr: str
    console: str
    phases: Mapping[str, float]

    def __str__(self) -> str:
        took = ", ".join(f"{phase} {seconds:.2f} s" for phase, seconds in self.phases.items())
        return "; ".join(
            (
                f"QEMU lives, status {self.status}" if self.alive else f"QEMU is dead: {self.cause}",
                f"its stderr: {_telling(self.stderr)}",
                f"the console: {_telling(self.console)}",
                f"boot: {took}",
            )
        )


def _telling(text: str) -> str:
    """The last lines, and before them the line of a kernel's panic, which a trace of calls would push out of sight."""
    lines = text.splitlines()
    panic = [line for line in lines[:-_LINES] if "Kernel panic" in line]
    return " | ".join([*panic[-1:], *lines[-_LINES:]]) or "silent"
