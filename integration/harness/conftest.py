"""The harness's own tests start no pod."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def module_leaves_nothing() -> None:
    """In place of the leak check around a module of tests that run containers."""


@pytest.fixture(autouse=True)
def leaves_nothing() -> None:
    """In place of the leak check around each of them."""
