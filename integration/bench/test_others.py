"""The other benchmarks measure what they say, one round each. Nothing is asserted about time."""

import asyncio
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.bench import inside, start

pytestmark = pytest.mark.vm

PREFIX = Path(os.environ.get("KATA_SHIMD_PREFIX", "/opt/kata-shimd"))


@pytest.fixture
def root() -> Iterator[Path]:
    """Short: sockets are below it."""
    with tempfile.TemporaryDirectory(prefix="kb-", dir="/tmp") as made:
        yield Path(made)


def test_containers_and_execs_beside_crun_and_runc(root: Path) -> None:
    taken, memory = asyncio.run(inside.measure(PREFIX, root, 1))
    assert len(taken) == 6 and all(len(values) == 1 and values[0] > 0 for values in taken.values())
    assert (
        set(memory) == {"daemon", "qemu", "virtiofsd"} and memory["qemu"] > memory["daemon"] > memory["virtiofsd"] > 0
    )
    assert "| exec ÷ crun exec, in the guest |" in inside.table(taken, memory)


def test_starts_beside_runcs(root: Path) -> None:
    runc = shutil.which("containerd-shim-runc-v2")
    assert runc is not None
    taken = start.measure(start.Node(root, PREFIX, Path(runc)), 1)
    assert all(len(values) == 1 and values[0] > 0 for values in taken.values())
    assert taken["further container"][0] < taken["cold"][0], "nothing is booted for it"
    assert "| zygote ÷ runc's |" in start.table(taken)
