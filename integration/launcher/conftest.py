"""Fixtures: a launcher in a directory of its own, beside a ``python3`` that is the stand-in; no containerd.

Whatever a test starts is a descendant of ours (the test process is a subreaper), and is ended after it.
"""

import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from integration.harness import process
from integration.harness.process import find
from integration.launcher.shim import Shim

PREFIX = Path(os.environ.get("KATA_SHIMD_PREFIX", "/opt/kata-shimd"))
LAUNCHER = Path(os.environ.get("KATA_SHIMD_LAUNCHER", PREFIX / "bin/containerd-shim-kata-v2"))

#: Seconds for an undo.
TIMEOUT: Final = 40


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


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod directory with a ledger, and no daemon."""

    path: Path

    def plan(self, n: int, kind: str, **fields: Any) -> None:
        self.line({"op": "plan", "n": n, "scope": "pod", "kind": kind, **fields})

    def made(self, n: int, **identity: Any) -> None:
        self.line({"op": "made", "n": n, **identity})

    def process(self, n: int, pid: int, *, what: str = "qemu", **fields: Any) -> None:
        found = find(pid)
        assert found is not None
        self.plan(n, "process", what=what, **fields)
        self.made(n, pid=pid, start=found.start)

    def line(self, line: Mapping[str, Any]) -> None:
        with (self.path / "ledger").open("a") as ledger:
            ledger.write(json.dumps(line) + "\n")

    def undone(self) -> list[int]:
        lines = [json.loads(line) for line in (self.path / "ledger").read_text().splitlines()]
        return [line["n"] for line in lines if line["op"] == "undone"]

    def undo(self, *scope: str, **environ: str) -> "subprocess.CompletedProcess[str]":
        argv = [LAUNCHER, "undo", self.path, *scope]
        return subprocess.run(
            argv,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **environ},
        )

    def undo_all(self) -> None:
        """Undo, which succeeds without a word and leaves nothing; and once more, which does too."""
        for _ in range(2):
            done = self.undo()
            assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
            assert not self.path.exists()

    def left(self, *scope: str) -> list[str]:
        """What undo says it could not undo."""
        done = self.undo(*scope)
        assert (done.returncode, done.stdout) == (1, "")
        assert self.path.exists()
        return done.stderr.splitlines()


@pytest.fixture
def pod(tmp_path: Path) -> Pod:
    path = tmp_path / "pod"
    path.mkdir(mode=0o700)
    ledger = path / "ledger"
    ledger.touch(mode=0o600)
    made = Pod(path)
    made.line({"op": "open", "v": 1})
    return made


@pytest.fixture
def sleeper() -> Iterator[Callable[..., "subprocess.Popen[bytes]"]]:
    """Starts processes, and ends those that undo did not."""
    with ExitStack() as stack:

        def start(*argv: str) -> "subprocess.Popen[bytes]":
            child = stack.enter_context(subprocess.Popen(argv or ("sleep", "1000")))
            stack.callback(child.kill)
            return child

        yield start


@pytest.fixture
def tmpfs() -> Iterator[Callable[[Path], Path]]:
    """Mounts a tmpfs, and takes away what undo did not."""
    with ExitStack() as stack:

        def mount(where: Path) -> Path:
            where.mkdir(exist_ok=True)
            subprocess.run(["mount", "-t", "tmpfs", "tmpfs", where], check=True)
            stack.callback(subprocess.run, ["umount", "-l", where], capture_output=True, check=False)
            return where

        yield mount
