"""These tests start no pod: they need Go, and neither containerd nor an installed launcher for a leak check to watch."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def module_leaves_nothing() -> None:
    """In place of the leak check around a module of tests that run containers."""


@pytest.fixture(autouse=True)
def leaves_nothing() -> None:
    """In place of the leak check around each of them."""
