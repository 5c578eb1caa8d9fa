"""Fixtures: a launcher in a directory of its own, beside a ``python3`` that is the stand-in; no containerd.

Whatever a test starts is a descendant of ours (the test process is a subreaper), and is ended after it.
"""

import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from integration.harness import process
from integration.launcher.shim import Shim

PREFIX = Path(os.environ.get("KATA_SHIMD_PREFIX", "/opt/kata-shimd"))
LAUNCHER = Path(os.environ.get("KATA_SHIMD_LAUNCHER", PREFIX / "bin/containerd-shim-kata-v2"))


@pytest.fixture(scope="module", autouse=True)
def module_leaves_nothing() -> None:
    """In place of the leak check around a module of tests that run containers."""


@pytest.fixture
def living() -> Iterator[Callable[[], list[process.Process]]]:
    """The processes begun in this test that live. Others of ours may be there: a whole session has a containerd."""
    before = set(process.descendants())
    yield lambda: sorted(found for found in set(process.descendants()) - before if found.alive())


@pytest.fixture(autouse=True)
def leaves_nothing(living: Callable[[], list[process.Process]]) -> Iterator[None]:
    """In place of the leak check of containers: no process outlives its test, and none survives it."""
    yield
    for left in living():
        left.kill()
    process.reap_orphans()


@pytest.fixture(scope="session")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The launcher under test; KATA_SHIMD_LAUNCHER names another than the installed one."""
    if not LAUNCHER.exists():
        pytest.exit(f"{LAUNCHER} is not there: build it, or set KATA_SHIMD_LAUNCHER", returncode=4)
    bin_dir = tmp_path_factory.mktemp("bin")
    copy = Path(shutil.copy2(LAUNCHER, bin_dir))
    wrapper = bin_dir / "python3"
    stand_in = Path(__file__).with_name("stand_in.py")
    wrapper.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S -B {stand_in} "$@"\n')
    wrapper.chmod(0o755)
    return copy


@pytest.fixture
def shim(launcher: Path, tmp_path: Path) -> Shim:
    return Shim(launcher, tmp_path)


@pytest.fixture
def netns(tmp_path: Path) -> Iterator[Path]:
    """A network namespace pinned to a file."""
    pin = tmp_path / "netns"
    pin.touch()
    subprocess.run(["unshare", f"--net={pin}", "true"], check=True)
    yield pin
    subprocess.run(["umount", "-l", pin], capture_output=True, check=False)


@pytest.fixture
def cgroups() -> Iterator[list[Path]]:
    """An empty cgroup of ours in every hierarchy of the host."""
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    roots = [Path(fields[4]) for fields in mounts if fields[fields.index("-") + 1] in ("cgroup", "cgroup2")]
    groups = [root / f"launcher-{secrets.token_hex(4)}" for root in roots]
    for group in groups:
        group.mkdir()
        if (group / "cpuset.cpus").exists():  # v1: children start empty unless told, and then nobody may enter them
            (group / "cgroup.clone_children").write_text("1")
            for name in ("cpuset.cpus", "cpuset.mems"):
                (group / name).write_text((group.parent / name).read_text())
    yield groups
    for group in groups:
        for left in (group / "child/grandchild", group / "child", group):
            if left.exists():
                left.rmdir()
