"""One stage a test; no containerd, so the leak check is about processes."""

import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from integration.harness import process
from integration.harness.leaks import PATIENCE
from integration.harness.waiting import TooLate, eventually
from integration.keeper.verbs.stage import Stage


@pytest.fixture(scope="module", autouse=True)
def module_leaves_nothing() -> None:
    """No containerd here; see `leaves_nothing`."""


@pytest.fixture(autouse=True)
def leaves_nothing() -> Iterator[None]:
    """No process outlives its test; mounts would be in the way of its directory's end."""
    before = set(process.descendants())

    def left() -> list[process.Process]:
        process.reap_orphans()
        return [found for found in set(process.descendants()) - before if found.alive()]

    yield
    with suppress(TooLate):
        eventually("everything gone", lambda: not left(), within=PATIENCE)
    names = [f"{found.pid} {found.command()}" for found in left()]
    for found in left():
        found.kill()
    process.reap_orphans()
    assert names == []


@pytest.fixture
def stage() -> Iterator[Stage]:
    with tempfile.TemporaryDirectory(prefix="kv") as root:
        made = Stage(Path(root))
        yield made
        made.close()
