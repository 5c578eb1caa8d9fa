"""critest: the files of expected results are whole, and a chosen part of the suite goes as they say.

The whole suite is `integration/critest`, by hand; here is what takes seconds, of each thing the runtime does.
"""

import pytest

from integration.conftest import PREFIX
from integration.cri import critest
from integration.cri.critest import CATEGORIES, Expected, Result
from integration.harness.cri import Release
from integration.harness.install import Layout

#: Words of specs' names, each of one spec that boots one pod.
CHOSEN = (
    r"runtime should support removing running container",
    r"runtime should support execSync with timeout",
    r"runtime should support starting container with volume \[",
    r"runtime should support attach \[",
    r"runtime should support DNS config",
    r"runtime should support set hostname",
    r"should support safe sysctls",
    r"runtime should support PodPID",
    r"runtime should support dropping ALL capabilities",
    r"runtime should support portforward \[",
    r"runtime should support port mapping with host port and container port",
)


def test_the_chosen_part(release: Release, layout: Layout) -> None:
    expected = critest.read_expected(critest.expected_file(release))
    with critest.Suite(release, layout, PREFIX) as suite:
        found = suite.run(focus="|".join(CHOSEN))
        log = suite.log.read_text()
    assert len(found) >= len(CHOSEN) - 1, log[-2000:]
    assert critest.differences(found, expected, whole=False) == [], log[-8000:]


def test_the_file_is_whole(release: Release) -> None:
    """Most specs pass, and whatever does not has one of the categories."""
    expected = critest.read_expected(critest.expected_file(release))
    by_outcome = [line.outcome for line in expected.values()]
    assert by_outcome.count("passed") > 0.6 * len(expected) > 60
    failed = {line.category for line in expected.values() if line.outcome == "failed"}
    assert failed <= {"vm", "image-service", "containerd", "host"}
    assert {line.category for line in expected.values() if line.outcome == "skipped"} <= {*CATEGORIES}


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
    assert critest.differences(found, expected, whole=True) == ([line] if line else [])


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
