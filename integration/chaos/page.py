"""Writes docs/failures.md: the table of what dies when, and each cell's result."""

import platform
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Final

from integration.chaos.matrix import CELLS, Senseless
from integration.chaos.moments import Moment
from integration.chaos.play import Result
from integration.chaos.victims import Victim
from integration.harness import revision
from integration.harness.scale import SCALE

Results = Mapping[tuple[Victim, Moment], Result]

_HEAD: Final = """\
# Failures

What is seen when something dies: every part of the path, at every moment of a container's life, on real virtual machines.
Written by `python -m integration.chaos --all`; do not edit. What the columns mean is in `integration/chaos/play.py`.

In every cell: State answers within 2 s as long as there is a daemon; no RPC but Wait outlives its deadline; what survives can be
killed; nobody is told exit status 0 for a task that was lost; `kata-shimd why` names the cause; nothing is left on the host; the
same id runs again afterwards. Where something is left at first, the page says why, and it is gone after the retry.

The agent dies as the host sees it: its connection ends while the machine runs, for it is process 1 of its guest. "containerd, away"
is containerd stopped for two and a half minutes.

What does not die but fails otherwise is a test each, with the same demands: `integration/chaos/test_failures.py` (a kernel that
panics, memory used up in the container and in the guest, a QEMU that stands still, a guest that never answers, a full disk before
and under a pod, no descriptors), `integration/hostile` (an agent that answers garbage, too much or too slowly),
`integration/test_virtiofsd_slow.py`, and the nine pains of Kata's users in `integration/chaos/test_pains.py`.
"""
#: What ctr's logger puts before a warning.
_LOGGED: Final = re.compile(r'time="[^"]*" level=')
_PROGRAMS: Final = (
    ("containerd", "--version"),
    ("qemu-system-x86_64", "--version"),
    ("/usr/lib/qemu/virtiofsd", "--version"),
    ("/usr/libexec/virtiofsd", "--version"),
)


def render(results: Results) -> str:
    """The page. Cells without a result are said to be not played."""
    return "\n".join([_HEAD, *_when(results), "", *_table(results), "", *_details(results)]) + "\n"


def _when(results: Results) -> Iterator[str]:
    good = sum(not result.complaints for result in results.values())
    how = "hardware virtualisation" if SCALE == 1 else "emulation (TCG)"
    yield f"Last result, {datetime.now(UTC):%Y-%m-%d}: {good} of {len(results)} cells as expected, by {how}."
    yield ""
    yield f"- {revision.own()}"
    yield f"- Linux {platform.release()}, Python {platform.python_version()}"
    for program, flag in _PROGRAMS:
        if path := shutil.which(program):
            said = subprocess.run([path, flag], capture_output=True, text=True, check=False).stdout
            yield f"- {said.splitlines()[0]}"


def _table(results: Results) -> Iterator[str]:
    yield f"| who dies | {' | '.join(Moment)} |"
    yield "|---" * (len(Moment) + 1) + "|"
    for victim in Victim:
        yield f"| {victim} | {' | '.join(_cell(results, victim, moment) for moment in Moment)} |"


def _cell(results: Results, victim: Victim, moment: Moment) -> str:
    if isinstance(CELLS[victim, moment], Senseless):
        return "–"
    if (result := results.get((victim, moment))) is None:
        return "not played"
    return f"{'ok' if not result.complaints else '**FAILED**'}, {result.seconds:.0f} s"


def _details(results: Results) -> Iterator[str]:
    for victim in Victim:
        yield f"## {victim}"
        yield ""
        yield "| moment | client's exit code | it says | `why` | the containers |"
        yield "|---|---|---|---|---|"
        for moment in Moment:
            yield _row(results, victim, moment)
        yield ""
        for moment in Moment:
            if (result := results.get((victim, moment))) and result.complaints:
                yield from (f"- FAILED, {moment}: {plain(complaint)}" for complaint in result.complaints)
                yield ""


def _row(results: Results, victim: Victim, moment: Moment) -> str:
    cell, result = CELLS[victim, moment], results.get((victim, moment))
    if isinstance(cell, Senseless):
        return f"| {moment} | | | | no sense: {cell.because} |"
    if result is None:
        return f"| {moment} | | | | not played |"
    goes_on = "go on, and can be killed" if cell.survives else "are lost"
    if cell.leaves:
        goes_on += f"; something is left at first: {cell.leaves}"
    why = f"{result.rule}: {plain(result.sentence)}"
    return f"| {moment} | {result.code} | {plain(result.said) or '(nothing)'} | {why} | {goes_on} |"


def plain(text: str) -> str:
    """One line that fits a table."""
    line = " ".join(_LOGGED.sub("", text).split()).replace("|", "\\|").replace("<", "&lt;")
    return line if len(line) <= 220 else line[:220] + "…"
