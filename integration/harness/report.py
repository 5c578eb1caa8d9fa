"""pytest plugin: a failed test carries containerd's log of its time, and every pod's journal, ledger and captured output."""

import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Final

import pytest

from integration.harness import pods
from integration.harness.containerd import Containerd
from integration.harness.host import Host

LOG_TAIL: Final = 24_000


@dataclass(slots=True)
class Evidence:
    """Where to look when a test of this session fails, and where the current test begins in that."""

    host: Host
    containerd: Containerd
    log_offset: int = 0
    begin: float = 0.0

    def mark(self) -> None:
        """A test begins: what is older is not its own."""
        self.log_offset = self.containerd.log.stat().st_size
        self.begin = time.time()


EVIDENCE: Final = pytest.StashKey[Evidence]()


def forget(stash: pytest.Stash) -> None:
    """A containerd has ended. Several may be in one session, and the last to come is the one that is looked at."""
    if EVIDENCE in stash:
        del stash[EVIDENCE]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    evidence = item.session.stash.get(EVIDENCE, None)
    if report.failed and evidence is not None:
        report.sections.extend(_sections(evidence))
    return report


def _sections(evidence: Evidence) -> list[tuple[str, Any]]:
    log = evidence.containerd.log_from(evidence.log_offset)[-LOG_TAIL:]
    return [("containerd log", log), *pods.attachments(evidence.host.run_dir, since=evidence.begin).items()]
