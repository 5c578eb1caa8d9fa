"""What the long form of `test_random` has measured so far: kept beside it as ``results.json``, and told in docs/keeper.md.

One run for each `Setup`. A run is made in parts, each with a containerd and pods of its own. A part that is over is kept at once,
so a run that is cut short has not been for nothing, and one that goes on adds to it.
"""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final, Self

from integration.harness import versions
from integration.keeper.load import Seen
from integration.keeper.setups import Keeper, Loop, Setup

FILE: Final = Path(__file__).parent / "results.json"
PAGE: Final = Path(__file__).parents[2] / "docs/keeper.md"
BEGIN: Final = "<!-- made by `python -m integration.keeper --keep`; do not edit -->"
END: Final = "<!-- end -->"
#: Calls are counted by so many milliseconds.
STEP_MS: Final = 10
#: Of a run that does not say under what it was made: from before there was a choice.
FIRST: Final = Setup(Keeper.LAUNCHER, Loop.UVLOOP)


@dataclass(slots=True)
class Calls:
    """How long calls of one kind took: how many by hundredths of a second, and the longest, in seconds."""

    counts: dict[str, int] = field(default_factory=dict)
    longest: float = 0.0

    def add(self, seconds: Iterable[float]) -> None:
        for one in seconds:
            step = str(int(one * 1000) // STEP_MS)
            self.counts[step] = self.counts.get(step, 0) + 1
            self.longest = max(self.longest, round(one, 2))

    def join(self, other: "Calls") -> None:
        for step, count in other.counts.items():
            self.counts[step] = self.counts.get(step, 0) + count
        self.longest = max(self.longest, other.longest)

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def within(self, share: float) -> float:
        """Seconds within which that share of the calls was answered."""
        left = share * self.total
        for step in sorted(map(int, self.counts)):
            left -= self.counts[str(step)]
            if left <= 0:
                return (step + 1) * STEP_MS / 1000
        return self.longest


@dataclass(slots=True)
class Run:
    """``loads`` are the host's, one a death; ``wrong`` are sentences, none is good."""

    wanted: int
    stream_kib: int
    kills: int = 0
    parts: int = 0
    calls: dict[str, Calls] = field(default_factory=dict)
    loads: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    niceness: int = 0
    when: str = ""
    setup: Setup = FIRST

    @classmethod
    def of(cls, seen: Seen, setup: Setup, *, stream_kib: int) -> Self:
        """One part."""
        told = {"loads": seen.loads, "wrong": seen.wrong, "niceness": os.nice(0), "setup": setup}
        run = cls(seen.kills, stream_kib, seen.kills, 1, **told)
        for what, seconds in seen.seconds.items():
            run.calls.setdefault(what, Calls()).add(seconds)
        return run

    @classmethod
    def read(cls, text: str) -> Self:
        """:raises ValueError: it was made under something that is not known"""
        found = json.loads(text)
        calls = {what: Calls(**one) for what, one in found.pop("calls").items()}
        setup = found.pop("setup", None) or asdict(FIRST)
        return cls(**found, calls=calls, setup=Setup(Keeper(setup["keeper"]), Loop(setup["loop"])))

    def text(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    def join(self, part: "Run") -> None:
        self.kills, self.parts = self.kills + part.kills, self.parts + 1
        self.loads, self.wrong = [*self.loads, *part.loads], [*self.wrong, *part.wrong]
        self.niceness = part.niceness
        for what, calls in part.calls.items():
            self.calls.setdefault(what, Calls()).join(calls)


def kept() -> dict[Setup, Run]:
    """What is there. One run alone, as it was before there were several, is read too."""
    found = json.loads(FILE.read_text())
    runs = [Run.read(json.dumps(one)) for one in (found if isinstance(found, list) else [found])]
    return {run.setup: run for run in runs}


def keep(run: Run) -> None:
    """Beside us, and on the page; the other setups' runs stay."""
    run.when = versions.line()
    _write([one for _, one in sorted((kept() | {run.setup: run}).items())])


def _write(runs: Sequence[Run]) -> None:
    lines = ",\n".join(one.text() for one in runs)
    FILE.write_text(f"[\n{lines}\n]\n")
    head, _, rest = PAGE.read_text().partition(BEGIN)
    sections = "\n".join(map(section, runs))
    PAGE.write_text(f"{head}{BEGIN}\n\n{sections}\n{END}{rest.partition(END)[2]}")


def section(run: Run) -> str:
    """The run in words."""
    loads = sorted(run.loads) or [0.0]
    load = f"{loads[0]:.1f} to {loads[-1]:.1f}, {loads[len(loads) // 2]:.1f} in the middle"
    said = [
        f"### {str(run.setup)[:1].upper()}{str(run.setup)[1:]}",
        "",
        f"{run.when}. Niceness {run.niceness}, load {load}.",
        f"{run.kills} of {run.wanted} deaths, in {run.parts} parts, streams of {run.stream_kib} KiB each way.",
        "",
        "| Calls | How many | Half within, s | 99 of 100 within, s | The longest, s |",
        "|---|---|---|---|---|",
        *(
            f"| {what} | {calls.total} | {calls.within(0.5):.2f} | {calls.within(0.99):.2f} | {calls.longest:.2f} |"
            for what, calls in sorted(run.calls.items())
        ),
        "",
        *(
            [f"{len(run.wrong)} complaints:", "", *(f"- {one}" for one in _by_kind(run.wrong))]
            if run.wrong
            else ["No complaint."]
        ),
        "",
    ]
    return "\n".join(said)


def _by_kind(sentences: Iterable[str]) -> Iterator[str]:
    """Of each kind of call how many, and the first; all of them are in `FILE`."""
    kinds: dict[str, list[str]] = {}
    for sentence in sentences:
        kinds.setdefault(sentence.partition(":")[0], []).append(_plain(sentence))
    for found in kinds.values():
        yield found[0] + (f" (and {len(found) - 1} more of the kind)" if len(found) > 1 else "")


def _plain(sentence: str) -> str:
    return " ".join(sentence.split()).replace("|", "/")
