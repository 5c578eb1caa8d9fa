"""Fixtures: guests built once a session into a private directory.

Programs are those of the installed wheel (the checkout has none: cargo's results go straight into the wheel), or come from
``KATA_SHIMD_PROGRAMS``, a directory with ``kata-agent``, ``guest-init`` and ``trivial-init``.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.harness.install import Layout
from kata_shimd.image.build import Programs, build_guest
from kata_shimd.image.manifest import default_text
from kata_shimd.image.store import Store

PROBE = Path(__file__).parent / "probe.sh"


@pytest.fixture(scope="module", autouse=True)
def module_leaves_nothing() -> Iterator[None]:
    """No containerd here, so its leak check does not apply; a `Machine` ends its own QEMU."""
    yield


@pytest.fixture(autouse=True)
def leaves_nothing() -> Iterator[None]:
    yield


@pytest.fixture(scope="session")
def programs() -> Programs:
    directory = Path(os.environ.get("KATA_SHIMD_PROGRAMS") or Layout.from_environment().programs)
    found = Programs(directory / "kata-agent", directory / "guest-init", directory / "trivial-init")
    missing = [str(path) for path in (found.agent, found.init, found.trivial) if not path.exists()]
    if missing:
        pytest.fail(
            f"not there: {', '.join(missing)}; run integration/setup, or set KATA_SHIMD_PROGRAMS to where cargo's results are"
        )
    return found


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Downloads are shared by the session's builds, and nobody else's."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def guest(programs: Programs, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default guest's directory."""
    store = Store(tmp_path_factory.mktemp("guest"))
    return store.directory / build_guest(default_text(), programs, store=store, cache=cache)


@pytest.fixture(scope="session")
def probed(programs: Programs, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same guest with a shell script for its agent, which tells what it finds."""
    store = Store(tmp_path_factory.mktemp("probed"))
    spied = Programs(PROBE, programs.init, programs.trivial)
    return store.directory / build_guest(default_text(), spied, store=store, cache=cache)
