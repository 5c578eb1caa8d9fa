"""Rules about the code itself: who may import whom, how long files and functions may be, and that what is generated is current."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from kata_shimd.config import reference, usage
from kata_shimd.pod import diagram

PACKAGE = Path(__file__).parent
REPOSITORY = PACKAGE.parent
MAX_FILE = 450
MAX_TEST_FILE = 600
MAX_FUNCTION = 60

#: The package's own sources; generated code has a generator instead of a style.
SOURCES = tuple(sorted(path for path in PACKAGE.rglob("*.py") if PACKAGE / "api" not in path.parents))


def name_of(path):
    return str(path.relative_to(PACKAGE))


# --- imports ---------------------------------------------------------------------------------------------------------


def test_import_contracts():
    """Run as people run it, in an interpreter of its own: import-linter configures logging for good."""
    linter = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    done = subprocess.run(
        [sys.executable, "-c", linter], cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_every_part_has_a_layer():
    contracts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    placed = {part.strip(" ()") for layer in layers for part in layer.replace("|", " ").split()}
    parts = {path.stem for path in PACKAGE.glob("*.py") if not path.name.startswith(("test_", "__init__", "conftest"))}
    parts |= {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert parts <= placed, "add it to the layers in pyproject.toml"
    assert placed - parts <= {"net"}, "no such part"


# --- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_files_are_short(path):
    lines = len(path.read_text().splitlines())
    assert lines <= (MAX_TEST_FILE if path.name.startswith("test_") else MAX_FILE), f"{lines} lines"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_functions_are_short(path):
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, functions)]
    long = {node.name: lines for node in found if (lines := body_lines(node)) > MAX_FUNCTION}
    assert not long


def body_lines(function):
    """Lines without the docstring."""
    docstring = ast.get_docstring(function, clean=False) or ""
    return function.end_lineno - function.lineno + 1 - len(docstring.splitlines())


# --- generated pages -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("page", "made"),
    [("configuration.md", reference.page), ("state-machines.md", diagram.page)],
    ids=["configuration", "state-machines"],
)
def test_generated_pages_are_current(page, made):
    module = made.__module__
    assert (REPOSITORY / "docs" / page).read_text() == made(), f"python -m {module} > docs/{page}"


# --- configuration ---------------------------------------------------------------------------------------------------


def test_every_supported_key_is_read_somewhere():
    assert usage.unread(PACKAGE) == (), "make it act, or turn its `acts` into `held` in kata_shimd/config/keys*.py"


# --- the page of events ----------------------------------------------------------------------------------------------


def test_every_event_of_the_journal_is_documented():
    from kata_shimd.debug.timeline import EVENTS

    page = (REPOSITORY / "docs/debugging.md").read_text()
    assert [event for event in EVENTS if f"| `{event}` |" not in page] == []


def test_the_documented_rules_are_those_of_why():
    from kata_shimd.debug.verdict import RULES

    page = (REPOSITORY / "docs/debugging.md").read_text()
    rows = [line.split("`")[1] for line in page.partition("## Verdicts")[2].splitlines() if line.startswith("| `")]
    assert rows == [rule.name for rule in RULES]
