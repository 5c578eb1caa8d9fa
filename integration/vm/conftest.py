"""Fixtures of the VM's integration tests. They need no containerd, so the ladder's leak check is replaced by the site's own."""

import asyncio
import os
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from integration.vm.site import GUEST, LAUNCHER, Site


@pytest.fixture(scope="module", autouse=True)
def module_leaves_nothing() -> None:
    """In place of the one that looks at containerd."""


@pytest.fixture(scope="session", autouse=True)
def uvloop_has_its_pipe() -> None:
    """libuv opens a pipe for signals once in a process's life; it is no leak of a test's."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.sleep(0))


@pytest.fixture(autouse=True)
def leaves_nothing() -> Iterator[None]:
    """No descriptor and no child is left behind."""
    before = _descriptors()
    yield
    assert _descriptors() == before


def _descriptors() -> list[str]:
    kept = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            kept.append(str(entry.readlink()).partition("[")[0])
        except FileNotFoundError:
            continue  # the directory itself
    return sorted(kept)


@pytest.fixture
def site() -> Iterator[Site]:
    for needed in (LAUNCHER, GUEST / "rootfs.img"):
        if not needed.exists():
            pytest.exit(f"{needed} is not there: set KATA_SHIMD_LAUNCHER, KATA_SHIMD_GUEST", returncode=4)
    assert os.getuid() == 0, "these tests make mounts and change users"
    made = Site()
    yield made
    made.close()


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """Run a coroutine to its end, on either event loop."""

    def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
        with asyncio.Runner(loop_factory=request.param) as runner:
            return runner.run(coroutine)

    return run
