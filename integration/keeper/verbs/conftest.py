"""One stage a test; no containerd, so the leak check is about processes."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.harness import process
from integration.keeper.verbs.stage import Stage


@pytest.fixture(scope="module", autouse=True)
def module_leaves_nothing() -> None:
    """No containerd here; see `leaves_nothing`."""


@pytest.fixture(autouse=True)
def leaves_nothing() -> Iterator[None]:
    """No process outlives its test, and none survives it."""
    before = set(process.descendants())
    yield
    for left in set(process.descendants()) - before:
        left.kill()
    process.reap_orphans()


@pytest.fixture
def stage() -> Iterator[Stage]:
    with tempfile.TemporaryDirectory(prefix="kv") as root:
        made = Stage(Path(root))
        yield made
        made.close()
