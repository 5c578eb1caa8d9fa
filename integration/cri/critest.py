"""critest against a node, which must have nothing more on it afterwards than before. What is expected is in `expected`."""

import dataclasses
import itertools
import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from integration.cri import suite_images
from integration.harness import cri, gotools, image, leaks, process
from integration.harness.cri import CriContainerd, Release
from integration.harness.ctr import Ctr
from integration.harness.host import Host
from integration.harness.install import Layout
from integration.harness.registry import Registry

REAP_EVERY: Final = 5.0
#: What containerd's environment has for each version of the Task API; shims answer with it.
APIS: Final[Mapping[str, Mapping[str, str]]] = {"v2": {}, "v3": {"KATA_SHIMD_REPLY": "json3"}}
_STATES: Final = {"passed": "passed", "skipped": "skipped", "pending": "skipped"}


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a spec. ``message`` is its failure's, or why it was skipped."""

    outcome: str
    seconds: float
    message: str = ""


@dataclass(frozen=True, slots=True)
class Run:
    """A version of containerd, and of the Task API that it and our shims speak."""

    release: Release
    api: str

    def __str__(self) -> str:
        return f"{self.release.name}, Task API {self.api}"


def runs(layout: Layout) -> dict[str, Run]:
    """All there are, by the name on the command line. containerd 1.6 knows version 2 of the API alone."""
    old, new = cri.debian(), cri.newest(layout)
    return {"1.6": Run(old, "v2"), "2.4": Run(new, "v2"), "2.4-v3": Run(new, "v3")}


def _modest(release: Release) -> Release:
    """A node whose containers keep containerd's own score for the OOM killer: a lower one may be denied even to root."""
    more = f'{release.more}[plugins."{release.runtime}"]\n  restrict_oom_score_adj = true\n'
    if release.images == release.runtime:  # one table then, which `more` has begun
        more = f"{release.more}  restrict_oom_score_adj = true\n"
    return dataclasses.replace(release, more=more)


def shims(release: Release, layout: Layout, handler: str) -> list[Path]:
    """Where the release's own shim for runc is, if that is not the machine's and is wanted."""
    if handler != "runc" or release.program == cri.debian().program:
        return []
    return [*gotools.ensure(layout, modules=(gotools.RUNC_SHIM,)).values()]


class Suite:
    """A node with the suite's images in a registry beside it."""

    def __init__(self, run: Run, layout: Layout, prefix: Path, *, handler: str = "kata") -> None:
        self._handler = handler
        self._stack = ExitStack()
        self.host = self._stack.enter_context(Host([*shims(run.release, layout, handler), prefix / "bin"]))
        cri.prepare(self.host)
        self.home = self.host.root / "critest"
        self.home.mkdir()
        self._stack.enter_context(Registry(self.host, layout.cache, suite_images.images(layout.cache)))
        self.containerd = CriContainerd(self.host, _modest(run.release) if handler == "runc" else run.release)
        self._stack.callback(self.containerd.stop)
        self.containerd.start(**APIS[run.api])
        self._programs = gotools.ensure(layout)[gotools.CRI_TOOLS.name]
        archive = self.home / "pause.tar"
        image.write_archive(archive, {cri.PAUSE: image.pause()})
        Ctr(self.containerd, cri.NAMESPACE)("image", "import", archive).ok()
        self._scene = leaks.Scene(self.host, cri.NAMESPACE, self.containerd)
        self._before = leaks.snapshot(self._scene)

    def run(self, *focuses: str, skip: str = "", within: float = 3600.0) -> dict[str, Result]:
        """Run the specs whose names match, each of ``focuses`` by a process of its own at the same time; the results by name.

        Output goes to files named `log`, `log.1` and so on.
        """
        children = [self._start(number, focus, skip) for number, focus in enumerate(focuses or ("",))]
        try:
            _await_end(children, within)
        finally:
            for child in children:
                process.finish(child)
        reports = [self._report(number, child) for number, child in enumerate(children)]
        return dict(itertools.chain.from_iterable(report.items() for report in reports))

    def _start(self, number: int, focus: str, skip: str) -> "subprocess.Popen[bytes]":
        endpoint = f"unix://{self.containerd.address}"
        argv: list[str | Path] = [
            self._programs / "critest",
            f"-runtime-endpoint={endpoint}",
            f"-image-endpoint={endpoint}",
            f"-runtime-handler={self._handler}",
            f"-config={self.home / 'none.yaml'}",
            f"-ginkgo.json-report={self._report_file(number)}",
            "-ginkgo.no-color",
            "-ginkgo.seed=1",
            "-test.timeout=2h",
            *([f"-nri-socket={self.containerd.home / 'nri.sock'}"] if self.containerd.release.nri else []),
            *([f"-ginkgo.focus={focus}"] if focus else []),
            *([f"-ginkgo.skip={skip}"] if skip else []),
        ]
        self._report_file(number).unlink(missing_ok=True)
        with self._log_file(number).open("wb") as log:
            return self.host.spawn(argv, env={"HOME": str(self.home)}, stdout=log, stderr=log)

    def _report(self, number: int, child: "subprocess.Popen[bytes]") -> dict[str, Result]:
        if not self._report_file(number).exists():
            said = self._log_file(number).read_text()[-2000:]
            raise RuntimeError(f"critest ended with {child.returncode}: {said}")
        return results(json.loads(self._report_file(number).read_text()))

    def _report_file(self, number: int) -> Path:
        return self.home / f"report{number or ''}.json"

    def _log_file(self, number: int) -> Path:
        return self.home / (f"log.{number}" if number else "log")

    def leaked(self, within: float = leaks.PATIENCE) -> str:
        """What is on the node that was not there before the suite, and does not go; a line each."""
        return leaks.report(leaks.await_no_leak(self._scene, self._before, within=within))

    def crictl(self, *words: str | Path) -> "subprocess.CompletedProcess[bytes]":
        """The node's client, for what is done beside the suite."""
        options = ("--runtime-endpoint", f"unix://{self.containerd.address}", "--timeout", f"{leaks.PATIENCE * 6:.0f}s")
        return self.host.run([self._programs / "crictl", *options, *words], within=leaks.PATIENCE * 7)

    @property
    def log(self) -> Path:
        return self._log_file(0)

    def close(self) -> None:
        """Take away what a spec has left, then the node."""
        self.crictl("rmp", "--all", "--force")
        leaks.await_no_leak(self._scene, self._before)
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _await_end(children: Sequence["subprocess.Popen[bytes]"], within: float) -> None:
    """Wait for them, collecting meanwhile the daemons of pods that have ended, which are ours to reap.

    :raises subprocess.TimeoutExpired: one has not ended within so many seconds
    """
    end = time.monotonic() + within
    while running := [child for child in children if child.poll() is None]:
        child = running[0]
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


def timed(suite: Suite, *focuses: str, skip: str = "") -> tuple[dict[str, Result], float]:
    begin = time.monotonic()
    return suite.run(*focuses, skip=skip), time.monotonic() - begin
