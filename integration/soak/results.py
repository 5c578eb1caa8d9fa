"""What the last run of each half measured, kept beside them as ``results.json`` and shown by `page`: a half can be run alone."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from integration.harness import versions
from integration.soak.soak import WARM, Sample, marks, slope

_FILE: Final = Path(__file__).parent / "results.json"
Results = Mapping[str, Mapping[str, Any]]


def kept() -> Results:
    """By half, ``containers`` and ``pods``."""
    return dict(json.loads(_FILE.read_text())) if _FILE.exists() else {}


def keep_containers(samples: Sequence[Sample], found: Sequence[str]) -> None:
    """Some of the samples are enough to see a slope."""
    _keep("containers", {"rows": rows(samples), "slope": slope(samples), "found": list(found)})


def rows(samples: Sequence[Sample]) -> list[list[Any]]:
    """A line of the table for each sample that is shown."""
    return [
        [one.number, one.fds, one.threads, one.rss_kib, one.pss_kib, one.own_kib]
        + ([one.objects.tracked, one.objects.blocks] if one.objects else ["", ""])
        + [round(one.seconds, 2)]
        for one in shown(samples)
    ]


def keep_pods(seconds: Sequence[float], wanted: int) -> None:
    """After each pod, so that a run that is cut short has not been for nothing."""
    _keep("pods", {"seconds": [round(each, 2) for each in seconds], "wanted": wanted})


def shown(samples: Sequence[Sample]) -> list[Sample]:
    """The first, the one from which on it counts, the two that were looked into, and some between."""
    step, always = max(1, len(samples) // 8), {1, WARM, *marks(len(samples))}
    return [one for one in samples if one.number in always or one.number % step == 0]


def _keep(half: str, measured: Mapping[str, Any]) -> None:
    every = {**kept(), half: {"when": versions.line(), **measured}}
    _FILE.write_text(json.dumps(every, indent=1) + "\n")
