"""The files of what critest is expected to say, and what differs from them.

``expected-<version>.tsv`` has a line for every spec of the suite: its name, ``passed``, ``failed`` or ``skipped``, a category and
a reason for what is not passed. Any difference fails the run, a spec that has begun to pass as well. Where chance decides, both
outcomes stand there, as ``passed|skipped``. Specs of the image service, in which no runtime takes part, are a block of their own.
Above them, for each version of the Task API, stands the last run of the whole suite: when, of what, on what, and how long; and
the last one with runc, which showed that what is put down to containerd is not ours.
"""

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from integration.cri.critest import Result
from integration.harness.cri import Release

HERE: Final = Path(__file__).parent
OUTCOMES: Final = ("passed", "failed", "skipped")
#: Why a spec is not passed; the reason says more.
CATEGORIES: Final[Mapping[str, str]] = {
    "vm": "a virtual machine cannot do it: it is about the host's own namespaces and mounts",
    "not-supported": "a virtual machine could do it, this one does not",
    "containerd": "this version of containerd does not do it: with runc, run by hand, the spec ends the same",
    "upstream": "it needs an image of upstream's, byte for byte, and no registry of upstream's is asked",
}
#: Beginnings of the names of specs that are about images alone.
IMAGE_SERVICE: Final = (
    "[k8s.io] Image Manager ",
    "[k8s.io] Image Consistency ",
    "[k8s.io] Image Identifier Consistency ",
    "[k8s.io] Idempotence RemoveImage ",
)
BLOCKS: Final = ("The runtime", "The image service: no runtime takes part")
#: Stands where a person has to say why.
ASK: Final = "?"
_RUN: Final = "# run of the whole suite"
_RUNC: Final = "# run with runc"
_BLOCK: Final = "# ---"


@dataclass(frozen=True, slots=True)
class Expected:
    """A line of the file."""

    outcome: str
    category: str = ""
    reason: str = ""


def block(name: str) -> str:
    return BLOCKS[name.startswith(IMAGE_SERVICE)]


def file_of(release: Release) -> Path:
    return HERE / f"expected-{release.name}.tsv"


def _rows(file: Path) -> Iterator[tuple[int, list[str]]]:
    with file.open(newline="") as text:
        for number, row in enumerate(csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE), 1):
            if row:
                yield number, row


def read(file: Path, *, strict: bool = True) -> dict[str, Expected]:
    """:raises ValueError: a line that is none, in the wrong block, or with ``strict`` without category and reason, naming it"""
    found: dict[str, Expected] = {}
    current = ""
    for number, row in _rows(file):
        if row[0].startswith("#"):
            current = row[0].removeprefix(_BLOCK).strip()
            continue
        name, outcome, category, reason = row
        good = outcome == "passed" or not strict or (category in CATEGORIES and reason)
        good = good and (not strict or current == block(name))
        if not set(outcome.split("|")) <= set(OUTCOMES) or not good or name in found:
            raise ValueError(f"{file.name}:{number}: {row}")
        found[name] = Expected(outcome, category, reason)
    return found


def read_runs(file: Path) -> dict[str, str]:
    """Version of the Task API → the last run of the whole suite that ended as expected."""
    return {row[1]: row[2] for _, row in _rows(file) if row[0] == _RUN}


def read_runc(file: Path) -> str:
    """The last run of the whole suite with runc, which ended as the lines say of containerd; empty if there was none."""
    return next((row[1] for _, row in _rows(file) if row[0] == _RUNC), "")


def write(file: Path, lines: Mapping[str, Expected], runs: Mapping[str, str], runc: str = "") -> None:
    with file.open("w", newline="") as text:
        rows = csv.writer(text, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_NONE, quotechar=None)
        rows.writerows((_RUN, api, said) for api, said in sorted(runs.items()))
        rows.writerows([(_RUNC, runc)] if runc else [])
        for title in BLOCKS:
            rows.writerow((f"{_BLOCK} {title}",))
            chosen = sorted(item for item in lines.items() if block(item[0]) == title)
            rows.writerows((name, line.outcome, line.category, line.reason) for name, line in chosen)


def updated(known: Mapping[str, Expected], found: Mapping[str, Result]) -> dict[str, Expected]:
    """What is known of a spec that did not run, or is not passed as before, is kept; the rest asks for a reason."""
    lines = dict(known)
    for name, result in found.items():
        before = known.get(name)
        if before is not None and "|" in before.outcome and result.outcome in before.outcome.split("|"):
            continue
        if result.outcome == "passed":
            lines[name] = Expected("passed")
        elif before is None or before.outcome != result.outcome or before.category == ASK:
            lines[name] = Expected(result.outcome, ASK, " ".join(result.message.split())[:160])
    return lines


def differences(found: Mapping[str, Result], expected: Mapping[str, Expected], *, whole: bool) -> list[str]:
    """Every spec whose outcome is not the expected one; with ``whole``, also those that were not there to run."""
    lines = []
    for name, result in found.items():
        wanted = expected[name].outcome if name in expected else "not in the file"
        if result.outcome not in wanted.split("|"):
            lines.append(f"{name}: {result.outcome}, expected {wanted}: {' '.join(result.message.split())[:300]}")
    if whole:
        lines += [f"{name}: gone, expected {wanted.outcome}" for name, wanted in expected.items() if name not in found]
    return lines


def excused(expected: Mapping[str, Expected]) -> dict[str, Expected]:
    """What is put down to containerd: with any runtime it must be so."""
    return {name: line for name, line in expected.items() if line.category == "containerd"}


def summary(found: Mapping[str, Result]) -> str:
    counts = {outcome: sum(result.outcome == outcome for result in found.values()) for outcome in OUTCOMES}
    return ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
