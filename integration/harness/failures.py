"""pytest plugin (``-p integration.harness.failures``): what failed, a line of JSON each, into the file that `FILE` names.

The end of a long run's output is what is kept of it; with this its last lines can say which tests failed and why. A line is
written when the failure happens, so that a run that is cut off has told what it knew.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:  # whoever reads what was written has no pytest: integration/test runs with the system's Python alone
    import pytest

FILE: Final = "KATA_SHIMD_FAILURES"
#: Characters of a reason that are kept; its whole text stands in pytest's own report.
REASON: Final = 400


@dataclass(frozen=True, slots=True)
class Failure:
    """One failed phase of a test, or a module that could not be collected."""

    test: str
    phase: str
    reason: str

    def __str__(self) -> str:
        return f"{self.test} ({self.phase}): {self.reason}"


def read(path: Path) -> list[Failure]:
    """What was written so far; nothing when all passed."""
    return [Failure(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def tests(failures: Sequence[Failure]) -> list[str]:
    """The failed tests by node id, each once, as they came."""
    return list(dict.fromkeys(failure.test for failure in failures))


def pytest_runtest_logreport(report: "pytest.TestReport") -> None:
    _note(report.nodeid, report.when or "?", report)


def pytest_collectreport(report: "pytest.CollectReport") -> None:
    _note(report.nodeid, "collection", report)


def _note(test: str, phase: str, report: "pytest.TestReport | pytest.CollectReport") -> None:
    if report.failed and (path := os.environ.get(FILE)):
        failure = Failure(test, phase, _reason(report))
        with Path(path).open("a") as file:
            file.write(json.dumps(asdict(failure)) + "\n")


def _reason(report: "pytest.TestReport | pytest.CollectReport") -> str:
    """The exception's own words where there is one, else the end of what pytest shows; on one line."""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = " ".join((crash.message if crash is not None else report.longreprtext).split())
    return text[:REASON] if crash is not None else text[-REASON:]
