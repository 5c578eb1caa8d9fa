"""No machine here: the wider leak check is replaced by descriptors and by what was written where."""

import asyncio
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import uvloop

# libuv opens a pipe for signals once in the life of a process; let it be before anything is counted.
uvloop.new_event_loop().close()


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Every test on either event loop that a daemon may run on."""
    return {"asyncio": asyncio.SelectorEventLoop, "uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="module", autouse=True)
def module_leaves_nothing() -> None:
    """In place of the one that looks at containerd."""


class Touched:
    """Paths that the process has changed or opened for writing, by Python's audit events, while it is on."""

    EVENTS = frozenset(
        {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}
    )

    def __init__(self) -> None:
        self.on = False
        self.paths: set[str] = set()
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event in self.EVENTS:
            self.paths.update(str(item) for item in arguments[:2] if isinstance(item, str | Path))
        elif event == "open" and isinstance(arguments[0], str) and isinstance(arguments[2], int) and arguments[2] & 0o3:
            self.paths.add(arguments[0])


@pytest.fixture(scope="session")
def touched() -> Touched:
    """One for the session: an audit hook cannot be taken away."""
    return Touched()


@pytest.fixture(autouse=True)
def leaves_nothing(touched: Touched, tmp_path: Path) -> Iterator[None]:
    """Every descriptor is closed again, and nothing outside the test's own directory was changed."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    touched.paths.clear()
    touched.on = True
    yield
    touched.on = False
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    # A descriptor that is opened once more is no file but the one that it is of.
    assert not [path for path in touched.paths if not path.startswith((str(tmp_path), "/proc/self/fd/"))]
