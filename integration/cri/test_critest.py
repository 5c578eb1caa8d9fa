"""critest: the files of expected results are whole, and a chosen part of the suite goes as they say and leaves nothing.

The whole suite is `integration/critest`, by hand; here is what takes seconds, of each thing the runtime does.
"""

import json
from pathlib import Path

import pytest

from integration.conftest import PREFIX
from integration.cri import critest, critest_page, expected
from integration.cri.critest import Result, Run, Suite
from integration.cri.expected import CATEGORIES, Expected, differences
from integration.harness import cri
from integration.harness.cri import Release
from integration.harness.install import Layout

#: Words of specs' names, each of one spec of at most one pod; the lists run at the same time.
CHOSEN = (
    # One machine for a pod, and its life.
    (
        r"Multiple Containers \[Conformance\] when running multiple containers in a pod should support network",
        r"runtime should support removing running container",
        r"runtime should support PodPID",
        r"runtime should support attach \[",
        r"runtime should support execSync with timeout",
    ),
    # Its network, and creations that are refused. Not port-forward: the suite gives nginx 15 seconds from its start to its
    # answer, which is short where three emulated machines boot on two processors; `test_forward` is about it.
    (
        r"runtime should support DNS config",
        r"runtime should support set hostname",
        r"runtime should support port mapping with host port and container port",
        r"runtime should support HostNetwork is true",
        r"runtime should return error if RunAsGroup is set without RunAsUser",
    ),
    # What its containers are given.
    (
        r"should support safe sysctls",
        r"runtime should support starting container with volume \[",
        r"should support non-recursive readonly mounts",
        r"runtime should support dropping ALL capabilities",
        r"runtime should support MaskedPaths",
    ),
)
#: What a pod is made of; a control group only where the configuration asks for it.
LEFT = ("process", "mount", "link", "netns", "descriptor", "socket", "directory")


@pytest.mark.parametrize(("release", "api"), [("1.6", "v2"), ("2.4", "v3")], indirect=["release"])
def test_the_chosen_part(release: Release, api: str, layout: Layout) -> None:
    """The newer containerd by version 3 of the Task API; by version 2 all other tests of CRI go there."""
    known = expected.read(expected.file_of(release))
    with Suite(Run(release, api), layout, PREFIX) as suite:
        found = suite.run(*("|".join(words) for words in CHOSEN))
        log = suite.log.read_text()
        assert suite.leaked() == ""
    assert len(found) == sum(map(len, CHOSEN)), log[-2000:]
    assert differences(found, known, whole=False) == [], log[-8000:]


@pytest.mark.parametrize("release", ["2.4"], indirect=True)
def test_a_pod_that_a_spec_leaves_is_found(release: Release, layout: Layout) -> None:
    """And nothing more is, once it has been removed. It has been made by version 3 of the Task API, as was asked for."""
    with Suite(Run(release, "v3"), layout, PREFIX) as suite:
        config = suite.home / "left.json"
        config.write_text(json.dumps(cri.pod_config("left")))
        made = suite.crictl("runp", "--runtime", "kata", config)
        assert made.returncode == 0, made.stderr
        bootstrap = suite.containerd.bundle(cri.NAMESPACE, made.stdout.decode().strip()) / "bootstrap.json"
        assert json.loads(bootstrap.read_text())["version"] == 3
        leaked = suite.leaked(within=0.0)
        assert [kind for kind in LEFT if f"leaked {kind}: " not in leaked] == [], leaked
        suite.crictl("rmp", "--all", "--force")
        assert suite.leaked() == ""


def test_the_file_is_whole(release: Release, layout: Layout) -> None:
    """Most specs pass, whatever does not has one of the categories, and its last runs are noted: none is put down to containerd
    since.
    """
    file = expected.file_of(release)
    lines = expected.read(file)
    by_outcome = [line.outcome for line in lines.values()]
    assert by_outcome.count("passed") > 0.6 * len(lines) > 60
    assert {line.category for line in lines.values() if line.outcome != "passed"} <= {*CATEGORIES}
    ran = {run.api for run in critest.runs(layout).values() if run.release.name == release.name}
    assert expected.read_runs(file).keys() == ran
    assert f"all {len(expected.excused(lines))} specs put down to containerd" in expected.read_runc(file)


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    lines = {
        "[k8s.io] Pod a": Expected("passed"),
        "[k8s.io] Image Manager b": Expected("failed", "upstream", 'a "reason"'),
    }
    file = tmp_path / "file"
    runs = {"v2": "today, of this"}
    expected.write(file, lines, runs, "of that")
    assert (expected.read(file), expected.read_runs(file), expected.read_runc(file)) == (lines, runs, "of that")
    titles = [line for line in file.read_text().splitlines() if line.startswith("# ---")]
    assert titles == [f"# --- {title}" for title in expected.BLOCKS]


@pytest.mark.parametrize(
    "line",
    ["[k8s.io] Image Manager b\tpassed\t\t", "[k8s.io] Pod a\tfailed\tvm\t", "[k8s.io] Pod a\tfailed\thost\tlacks it"],
    ids=["in the wrong block", "without a reason", "of no category"],
)
def test_a_line_that_excuses_is_refused(tmp_path: Path, line: str) -> None:
    file = tmp_path / "file"
    file.write_text(f"# --- {expected.BLOCKS[0]}\n{line}\n")
    with pytest.raises(ValueError, match="file:2"):
        expected.read(file)


def test_the_page_is_what_the_files_say() -> None:
    assert critest_page.PAGE.read_text() == critest_page.page()


@pytest.mark.parametrize(
    ("found", "line"),
    [
        ({"a": Result("passed", 1.0)}, ""),
        ({"a": Result("failed", 1.0, "why")}, "a: failed, expected passed: why"),
        ({"b": Result("passed", 1.0), "a": Result("passed", 1.0)}, "b: passed, expected not in the file: "),
        ({}, "a: gone, expected passed"),
        ({"a": Result("passed", 1.0), "c": Result("skipped", 1.0)}, ""),
    ],
    ids=["same", "worse", "new", "gone", "either"],
)
def test_any_difference_is_told(found: dict[str, Result], line: str) -> None:
    expected = {"a": Expected("passed")} | ({"c": Expected("passed|skipped")} if "c" in found else {})
    assert differences(found, expected, whole=True) == ([line] if line else [])


def test_a_report_of_the_suite_is_read() -> None:
    def spec(name: str, state: str, message: str = "") -> dict[str, object]:
        failure = {"Failure": {"Message": message}} if message else {}
        texts = {"ContainerHierarchyTexts": ["[k8s.io] Pod"], "LeafNodeText": name, "LeafNodeType": "It"}
        return {**texts, "State": state, "RunTime": 2_000_000_000, **failure}

    specs = [
        spec("a", "passed"),
        spec("b", "panicked", "oh"),
        spec("c", "skipped", "no AppArmor"),
        spec("d", "skipped"),
    ]
    found = critest.results([{"SpecReports": [*specs, {"LeafNodeType": "BeforeSuite"}]}])
    assert {name: (one.outcome, one.seconds) for name, one in found.items()} == {
        "[k8s.io] Pod a": ("passed", 2.0),
        "[k8s.io] Pod b": ("failed", 2.0),
        "[k8s.io] Pod c": ("skipped", 2.0),
    }
