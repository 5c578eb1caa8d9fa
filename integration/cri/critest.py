"""critest against a node, and its results against the file of expected ones.

``expected-<version>.tsv`` has a line for every spec of the suite: its name, ``passed``, ``failed`` or ``skipped``, a category and
a reason for what is not passed. Any difference fails the run, a spec that has begun to pass as well. Where chance decides, both
outcomes stand there, as ``passed|skipped``.
"""

import csv
import json
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from integration.cri import suite_images
from integration.harness import cri, gotools, image, process
from integration.harness.cri import CriContainerd, Release
from integration.harness.ctr import Ctr
from integration.harness.host import Host
from integration.harness.install import Layout
from integration.harness.registry import Registry

HERE: Final = Path(__file__).parent
OUTCOMES: Final = ("passed", "failed", "skipped")
#: Why a spec is not passed; the reason says more.
CATEGORIES: Final = (
    "vm",  # a virtual machine cannot do it: it is about the host's own namespaces
    "image-service",  # about images alone: no runtime takes part
    "host",  # this kind of test machine lacks what it needs
    "suite",  # left out by the suite itself
    "containerd",  # this version of containerd does not do it, with any runtime
)
REAP_EVERY: Final = 5.0
#: Stands where a person has to say why.
ASK: Final = "?"
_STATES: Final = {"passed": "passed", "skipped": "skipped", "pending": "skipped"}


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a spec. ``message`` is its failure's, or why it was skipped."""

    outcome: str
    seconds: float
    message: str = ""


@dataclass(frozen=True, slots=True)
class Expected:
    """A line of the file."""

    outcome: str
    category: str = ""
    reason: str = ""


class Suite:
    """A node with the suite's images in a registry beside it."""

    def __init__(self, release: Release, layout: Layout, prefix: Path, *, handler: str = "kata") -> None:
        self._handler = handler
        self._stack = ExitStack()
        self.host = self._stack.enter_context(Host([prefix / "bin"]))
        cri.prepare(self.host)
        self.home = self.host.root / "critest"
        self.home.mkdir()
        self._stack.enter_context(Registry(self.host, layout.cache, suite_images.images(self.home, layout.cache)))
        self.containerd = CriContainerd(self.host, release)
        self._stack.enter_context(self.containerd)
        self._program = gotools.ensure(layout)[gotools.CRI_TOOLS.name] / "critest"
        archive = self.home / "pause.tar"
        image.write_archive(archive, {cri.PAUSE: image.pause()})
        Ctr(self.containerd, cri.NAMESPACE)("image", "import", archive).ok()

    def run(self, focus: str = "", skip: str = "", *, within: float = 3600.0) -> dict[str, Result]:
        """Run the specs whose names match; the results by name. Output goes to `log`."""
        report = self.home / "report.json"
        report.unlink(missing_ok=True)
        endpoint = f"unix://{self.containerd.address}"
        argv: list[str | Path] = [
            self._program,
            f"-runtime-endpoint={endpoint}",
            f"-image-endpoint={endpoint}",
            f"-runtime-handler={self._handler}",
            f"-config={self.home / 'none.yaml'}",
            f"-ginkgo.json-report={report}",
            "-ginkgo.no-color",
            "-ginkgo.seed=1",
            "-test.timeout=2h",
            *([f"-nri-socket={self.containerd.home / 'nri.sock'}"] if self.containerd.release.nri else []),
            *([f"-ginkgo.focus={focus}"] if focus else []),
            *([f"-ginkgo.skip={skip}"] if skip else []),
        ]
        with self.log.open("wb") as log:
            child = self.host.spawn(argv, env={"HOME": str(self.home)}, stdout=log, stderr=log)
        try:
            _await_end(child, within)
        finally:
            process.finish(child)
        if not report.exists():
            raise RuntimeError(f"critest ended with {child.returncode}: {self.log.read_text()[-2000:]}")
        return results(json.loads(report.read_text()))

    @property
    def log(self) -> Path:
        return self.home / "log"

    def close(self) -> None:
        """Take away what a spec has left, then the node."""
        crictl = self._program.with_name("crictl")
        self.host.run([crictl, "--runtime-endpoint", f"unix://{self.containerd.address}", "rmp", "--all", "--force"])
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _await_end(child: "subprocess.Popen[bytes]", within: float) -> None:
    """Wait for it, collecting meanwhile the daemons of pods that have ended, which are ours to reap.

    :raises subprocess.TimeoutExpired: it has not ended within so many seconds
    """
    end = time.monotonic() + within
    while child.poll() is None:
        try:
            child.wait(REAP_EVERY)
        except subprocess.TimeoutExpired:
            process.reap_orphans()
            if time.monotonic() > end:
                raise


def results(report: Sequence[Mapping[str, Any]]) -> dict[str, Result]:
    """Ginkgo's JSON report: every spec that was chosen, by its full name."""
    found: dict[str, Result] = {}
    for spec in report[0]["SpecReports"]:
        if spec["LeafNodeType"] != "It" or _left_out(spec):
            continue
        texts = [*(spec["ContainerHierarchyTexts"] or ()), spec["LeafNodeText"]]
        message = str((spec.get("Failure") or {}).get("Message", ""))
        name = " ".join(" ".join(texts).split())
        found[name] = Result(_STATES.get(spec["State"], "failed"), spec["RunTime"] / 1e9, message)
    return found


def _left_out(spec: Mapping[str, Any]) -> bool:
    """Not chosen by focus or skip, which the report calls skipped as well, but without a word."""
    return spec["State"] == "skipped" and not (spec.get("Failure") or {}).get("Message")


def expected_file(release: Release) -> Path:
    return HERE / f"expected-{release.name}.tsv"


def read_expected(file: Path, *, strict: bool = True) -> dict[str, Expected]:
    """:raises ValueError: a line that is none, or with ``strict`` one without its category and reason, naming it"""
    found: dict[str, Expected] = {}
    with file.open(newline="") as text:
        for number, row in enumerate(csv.reader(text, delimiter="\t"), 1):
            name, outcome, category, reason = row
            good = outcome == "passed" or not strict or (category in CATEGORIES and reason)
            if not set(outcome.split("|")) <= set(OUTCOMES) or not good or name in found:
                raise ValueError(f"{file.name}:{number}: {row}")
            found[name] = Expected(outcome, category, reason)
    return found


def write_expected(file: Path, found: Mapping[str, Result], known: Mapping[str, Expected]) -> None:
    """Bring the file up to date. What is known of a spec that did not run, or is not passed as before, is kept; the rest asks for a
    reason.
    """
    lines = dict(known)
    for name, result in found.items():
        before = known.get(name)
        if before is not None and "|" in before.outcome and result.outcome in before.outcome.split("|"):
            continue
        if result.outcome == "passed":
            lines[name] = Expected("passed")
        elif before is None or before.outcome != result.outcome or before.category == ASK:
            lines[name] = Expected(result.outcome, ASK, " ".join(result.message.split())[:160])
    with file.open("w", newline="") as text:
        rows = csv.writer(text, delimiter="\t", lineterminator="\n")
        rows.writerows((name, line.outcome, line.category, line.reason) for name, line in sorted(lines.items()))


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


def summary(found: Mapping[str, Result], seconds: float) -> str:
    counts = {outcome: sum(result.outcome == outcome for result in found.values()) for outcome in OUTCOMES}
    return ", ".join(f"{count} {outcome}" for outcome, count in counts.items()) + f" in {seconds:.0f} s"


def plain(names: Sequence[str]) -> str:
    """A focus that matches exactly these specs."""
    return "|".join(f"{re.escape(name)}$" for name in names)


def timed(suite: Suite, **how: Any) -> tuple[dict[str, Result], float]:
    begin = time.monotonic()
    return suite.run(**how), time.monotonic() - begin
