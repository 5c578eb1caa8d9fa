"""What failed reaches the end of the output: names, phases and reasons, also of a second look."""

import subprocess
import sys
from pathlib import Path

import pytest

from integration.harness import checks, failures
from integration.harness.install import REPOSITORY

TESTS = """
import pytest
from pathlib import Path

@pytest.fixture
def leaks():
    yield
    pytest.fail("left: a process", pytrace=False)

def test_good(): pass
def test_bad(): assert 1 == 2, "one is not two"
def test_left(leaks): pass
def test_once():
    mark = Path(__file__).with_name("mark")
    if not mark.exists():
        mark.touch()
        pytest.fail("for the first time")
"""


def _pytest(directory: Path, told: Path) -> list[failures.Failure]:
    (directory / "test_sample.py").write_text(TESTS)
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "integration.harness.failures", "-c", "/dev/null", directory],
        env={"PATH": "/usr/bin:/bin", failures.FILE: str(told), "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.DEVNULL,
        check=False,
    )
    return failures.read(told)


def test_each_failure_is_told_with_its_phase(tmp_path):
    found = _pytest(tmp_path, tmp_path / "told")
    assert [(one.test.rpartition("::")[2], one.phase) for one in found] == [
        ("test_bad", "call"),
        ("test_left", "teardown"),
        ("test_once", "call"),
    ]
    assert "one is not two" in found[0].reason
    assert "left: a process" in found[1].reason


def test_a_run_without_failures_tells_nothing(tmp_path):
    assert failures.read(tmp_path / "never") == []


def test_a_module_that_cannot_be_read_is_told(tmp_path):
    (tmp_path / "test_broken.py").write_text("import nothing_of_that_name\n")
    found = _pytest(tmp_path, tmp_path / "told")
    assert any(one.phase == "collection" and "nothing_of_that_name" in one.reason for one in found)


def _failed(name, phase="call", where="integration/test_x.py"):
    return failures.Failure(f"{where}::{name}", phase, "why")


@pytest.mark.parametrize("names", [["a"], ["a", "b", "c"], ["a", "a", "b", "b", "c"]])
def test_a_few_failures_are_looked_at_again(names):
    assert checks.worth_a_second_look([_failed(name) for name in names])


@pytest.mark.parametrize(
    "failed",
    [
        [],
        [_failed("a"), _failed("b"), _failed("c"), _failed("d")],
        [_failed("a"), _failed("b", where="kata_shimd/test_x.py")],
        [_failed("a", phase="collection")],
    ],
)
def test_many_unit_tests_and_broken_modules_are_not(failed):
    assert not checks.worth_a_second_look(failed)
