"""Our pods below a systemd of their own: their ledgers name processes by numbers that are good in there only."""

from contextlib import suppress
from dataclasses import dataclass

from integration.harness import process
from integration.harness.pods import Pod
from integration.harness.process import Process
from integration.systemd.manager import Systemd


@dataclass(frozen=True, slots=True)
class InsidePod(Pod):
    """One pod of ``systemd``'s."""

    systemd: Systemd

    def outside(self, recorded: Process) -> Process:
        """By its number in there and its start, which is the same everywhere."""
        same = (found for found in process.descendants(self.systemd.pid) if found.start == recorded.start)
        return next((found for found in same if _number_inside(found) == recorded.pid), Process(0, 0))


def _number_inside(found: Process) -> int:
    """The last of the numbers that it has in the namespaces that it is in; 0 when it is gone."""
    with suppress(OSError):
        lines = (found.proc / "status").read_text().splitlines()
        return next(int(line.split()[-1]) for line in lines if line.startswith("NSpid:"))
    return 0
