"""The short form of ``python -m integration.keeper --keeper systemd``: a few deaths at random moments under all kinds of load."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.harness.ctr import Ctr
from integration.harness.pods import pod_hash
from integration.keeper.deaths import nobody_notices
from integration.keeper.setups import Keeper, Loop, Setup
from integration.systemd.manager import Systemd
from integration.systemd.pods import InsidePod

pytestmark = pytest.mark.vm


@pytest.fixture
def home(systemd: Systemd) -> Iterator[Path]:
    """Seen from in there as well."""
    with tempfile.TemporaryDirectory(prefix="c", dir=systemd.root) as directory:
        yield Path(directory)


@pytest.mark.parametrize("loop", [Loop.UVLOOP, Loop.ASYNCIO], ids=str)
def test_nobody_notices(systemd: Systemd, ctr: Ctr, name: str, home: Path, loop: Loop) -> None:
    def pod_of(name: str) -> InsidePod:
        return InsidePod(systemd.run_dir, pod_hash(str(ctr.containerd.address), ctr.namespace, name), systemd)

    nobody_notices(ctr, name, pod_of, Setup(Keeper.SYSTEMD, loop), 4, home=home)
