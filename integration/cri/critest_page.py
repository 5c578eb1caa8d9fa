"""docs/critest.md: written from the files of expected results, so that it says nothing else than they do.

``python -m integration.cri.critest_page > docs/critest.md``
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from integration.cri import expected
from integration.cri.critest import Result, Run
from integration.cri.expected import BLOCKS, CATEGORIES, OUTCOMES, Expected
from integration.harness import gotools, versions
from integration.harness.install import REPOSITORY

PAGE: Final = REPOSITORY / "docs/critest.md"
FILES: Final = {"1.6.20": expected.HERE / "expected-1.6.tsv", "2.4.2": expected.HERE / "expected-2.4.tsv"}
#: An outcome that is nobody's doing; in the recorded runs of 2.4.2 both of these specs were skipped.
CHANCE: Final = "passed|skipped"
_HEAD: Final = """\
# critest

`integration/critest` runs the suite of cri-tools on both versions of containerd with our handler, on the newer one by both
versions of the Task API. The images that the suite asks of public registries are made of Debian's packages
(`integration/cri/suite_images.py`) and served by a registry on loopback. Each spec is held against
`integration/cri/expected-1.6.tsv` or `expected-2.4.tsv`, the same for both versions of the API. Any difference fails the run, a
spec that has begun to pass as well; so does anything that is on the node afterwards and was not there before: processes,
mounts, links, network namespaces, control groups, descriptors, sockets, directories. `integration/test` runs a part of it
(`integration/cri/test_critest.py`). This page is written by `integration/critest --record` from those files.
"""


def record(run: Run, found: Mapping[str, Result], seconds: float) -> None:
    """Note a run of the whole suite in the file, and write the page anew."""
    file = expected.file_of(run.release)
    said = f"{versions.line(run.release.program)}, {_result(found, seconds)}"
    expected.write(file, expected.read(file), expected.read_runs(file) | {run.api: said}, expected.read_runc(file))
    PAGE.write_text(page())


def record_runc(run: Run, found: Mapping[str, Result], seconds: float) -> None:
    """The same of a run with runc, with which what is put down to containerd ended as it does with us."""
    file = expected.file_of(run.release)
    lines = expected.read(file)
    same = f"all {len(expected.excused(lines))} specs put down to containerd among them, each as it ends with us"
    said = f"{versions.of_runc(run.release.program)}, {_result(found, seconds)}; {same}"
    expected.write(file, lines, expected.read_runs(file), said)
    PAGE.write_text(page())


def _result(found: Mapping[str, Result], seconds: float) -> str:
    load = " ".join(f"{number:.1f}" for number in os.getloadavg())
    took = f"{expected.summary(found)} in {seconds:.0f} s, load {load} at the end"
    return f"critest {gotools.CRI_TOOLS.version}: {took}"


def page() -> str:
    read = {version: expected.read(file) for version, file in FILES.items()}
    parts = [_HEAD, *_counts(read), *_runs(), *_categories(), *_not_passed(read)]
    return "\n".join(parts) + "\n"


def _table(*head: str, rows: Iterable[Iterable[str]]) -> Iterator[str]:
    for row in (head, ["---"] * len(head), *rows):
        yield f"| {' | '.join(row)} |"


def _counts(read: Mapping[str, Mapping[str, Expected]]) -> Iterator[str]:
    def row(version: str, title: str) -> list[str]:
        lines = [line for name, line in read[version].items() if expected.block(name) == title]
        return [version, title.partition(":")[0], *(_count(lines, outcome) for outcome in (*OUTCOMES, CHANCE))]

    head = ("containerd", "", *OUTCOMES, "by chance passed or skipped")
    yield from _table(*head, rows=[row(version, title) for version in read for title in BLOCKS])


def _count(lines: Iterable[Expected], outcome: str) -> str:
    """How many, and of which categories."""
    chosen = [line for line in lines if line.outcome == outcome]
    kinds = Counter(line.category for line in chosen if line.category)
    return str(len(chosen)) + (": " + ", ".join(f"{n} `{kind}`" for kind, n in sorted(kinds.items())) if kinds else "")


def _runs() -> Iterator[str]:
    yield "\n## Runs of the whole suite\n"
    for version, file in FILES.items():
        for api, said in expected.read_runs(file).items():
            yield f"- containerd {version}, Task API {api}. {said}."
    yield "\n## Runs with runc\n"
    yield "By `integration/critest --handler runc --record`: what is put down to containerd has to end the same with it.\n"
    for version, file in FILES.items():
        yield f"- containerd {version}. {expected.read_runc(file)}."


def _categories() -> Iterator[str]:
    yield "\n## What is not passed\n"
    yield from _table("Category", "Meaning", rows=[(f"`{name}`", meaning) for name, meaning in CATEGORIES.items()])


def _not_passed(read: Mapping[str, Mapping[str, Expected]]) -> Iterator[str]:
    for title in BLOCKS:
        yield f"\n### {title}\n"
        rows = [
            (version, *_line(name, line))
            for version, lines in read.items()
            for name, line in sorted(lines.items())
            if line.outcome != "passed" and expected.block(name) == title
        ]
        yield from _table("", "Spec", "Outcome", "Category", "Reason", rows=rows)


def _line(name: str, line: Expected) -> tuple[str, ...]:
    short, outcome = name.removeprefix("[k8s.io] ").replace("|", "\\|"), line.outcome.replace("|", " or ")
    return short, outcome, f"`{line.category}`", line.reason


if __name__ == "__main__":
    print(page(), end="")
