"""No machine here, so the wider leak check, which starts one, is replaced by a count of descriptors."""

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="module", autouse=True)
def module_leaves_nothing() -> None:
    """In place of the one that looks at containerd."""


@pytest.fixture(autouse=True)
def leaves_nothing() -> Iterator[None]:
    before = len(list(Path("/proc/self/fd").iterdir()))
    yield
    assert len(list(Path("/proc/self/fd").iterdir())) == before
