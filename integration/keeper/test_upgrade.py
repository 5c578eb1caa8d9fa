"""Pods whose daemons move to another installation while they run, and installations that are no good."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from integration.conftest import PREFIX
from integration.harness import process
from integration.harness.ctr import PATIENCE, Ctr
from integration.harness.pods import Pod, factory
from integration.harness.scale import SCALE
from integration.harness.waiting import eventually
from integration.keeper.installation import Installation
from integration.keeper.killing import Hammer, Noticed, kill_daemon, listing
from integration.keeper.setups import Keeper, Loop, Setup
from kata_shimd import __version__

pytestmark = pytest.mark.vm

NEW = "7.8.9"


@pytest.fixture
def container(kept: Ctr, name: str, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """One that runs; with a parameter, its daemons on this event loop."""
    config = tmp_path / "configuration.toml"
    loop = Loop(getattr(request, "param", Loop.UVLOOP))
    config.write_text(Setup(Keeper.LAUNCHER, loop).configuration() + factory())
    kept.start(name, "sh", "-c", "while :; do sleep 86400; done", config=config)
    yield name
    kept.remove(name)


@pytest.fixture
def upgrade(ctr: Ctr) -> Callable[..., dict]:
    """``kata-shimd upgrade`` of an installation: (exit code, its answer on the pod)."""

    def run(installation: Installation, name: str, *words: str) -> tuple[int, dict]:
        done = installation.command("upgrade", name, "-o", "json", "--run-dir", ctr.containerd.host.run_dir, *words)
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)["pods"][0]

    return run


def versions(pod: Pod) -> list[str]:
    """Of each daemon that began, in order."""
    return [event["version"] for event in pod.journal() if event["event"] == "daemon"]


def executable(found: process.Process) -> str:
    return Path(f"/proc/{found.pid}/cmdline").read_bytes().split(b"\0")[0].decode()


@pytest.mark.parametrize("container", ["asyncio", "uvloop"], indirect=True)
def test_a_pod_under_load_moves_and_nobody_notices(
    kept: Ctr, container: str, pod_of: Callable[[str], Pod], unnoticed: Noticed, upgrade, tmp_path: Path
) -> None:
    pod = pod_of(container)
    newer = Installation.copy(tmp_path / "new", NEW)
    keeper = pod.process("keeper")
    script = "echo up; read line; echo $line; exit 9"
    running = kept.spawn("task", "exec", "--exec-id", "e1", container, "sh", "-c", script, stdin=subprocess.PIPE)
    try:
        assert running.stdout is not None and running.stdin is not None
        assert running.stdout.readline() == b"up\n"
        with Hammer(listing(kept, {container: "RUNNING"})) as listed:
            code, moved = upgrade(newer, container)
            assert (code, moved["result"]) == (0, "upgraded"), moved
        assert listed.failures() == []
        print(f"\n{len(listed.calls)} listings during an upgrade, the longest {listed.longest():.2f} s")
        running.stdin.write(b"through another version\n")
        running.stdin.flush()
        assert running.stdout.readline() == b"through another version\n"
        assert running.wait(PATIENCE) == 9
    finally:
        process.finish(running)
    assert (moved["version_before"], moved["version"]) == (__version__, NEW)
    assert executable(pod.process("daemon")) == str(newer.python)
    assert (pod.process("keeper"), executable(keeper)) == (keeper, str(newer.launcher)), (
        "the same process, another program"
    )
    kill_daemon(pod)
    assert versions(pod) == [__version__, NEW, NEW], "and later daemons are of the new version too"
    assert upgrade(newer, container)[1]["result"] == "current"
    assert kept.exec(container, "e2", "sh", "-c", "exit 4").code == 4
    unnoticed.deletions = 1


def test_a_version_that_does_not_start_costs_nothing(
    kept: Ctr, container: str, pod_of: Callable[[str], Pod], unnoticed: Noticed, upgrade, tmp_path: Path
) -> None:
    broken = Installation.copy(tmp_path / "new", NEW)
    broken.change("assembly.py", "import asyncio\n", "import asyncio\nimport nothing_of_this_name\n")
    before = pod_of(container).process("daemon")
    code, answer = upgrade(broken, container)
    assert (code, answer["result"]) == (1, "refused")
    assert "No module named 'nothing_of_this_name'" in answer["why"]
    assert pod_of(container).process("daemon") == before
    assert kept.tasks()[container][1] == "RUNNING"
    unnoticed.deletions = 1


def test_a_pod_without_a_keeper_is_refused_with_what_to_do(ctr: Ctr, name: str, upgrade, tmp_path: Path) -> None:
    ctr.start(name, "sleep", "86400")
    code, answer = upgrade(Installation.copy(tmp_path / "new", NEW), name)
    assert (code, answer["result"]) == (1, "refused")
    assert "the pod has no keeper; it keeps its version until it ends; set shimd.keeper" in answer["why"]
    ctr.remove(name)


#: In the new daemon, after it has begun and before it has its pod.
SPOILED = {
    "dies": ("raise RuntimeError('spoiled')", "60"),
    "hangs": ("await asyncio.sleep(86400)", "3"),
}


@pytest.mark.parametrize("how", SPOILED)
def test_a_version_that_fails_in_its_place_gives_it_back(
    kept: Ctr, container: str, pod_of: Callable[[str], Pod], unnoticed: Noticed, upgrade, tmp_path: Path, how: str
) -> None:
    statement, within = SPOILED[how]
    spoiled = Installation.copy(tmp_path / "new", NEW)
    body = "        spec, survival = oci.load(self._arguments.bundle), self._parts.survival\n"
    spoiled.change("assembly.py", body, f"        {statement}\n{body}")
    pod = pod_of(container)
    code, answer = upgrade(spoiled, container, "--within", within)
    assert (code, answer["result"], answer["version"]) == (1, "back", __version__)
    assert "the daemon on trial has not settled; back to the one before" in answer["why"]
    assert versions(pod) == [__version__, NEW, __version__]
    assert kept.exec(container, "e1", "sh", "-c", "exit 4").code == 4
    eventually("the listing", lambda: kept.tasks()[container][1] == "RUNNING", within=10 * SCALE)
    assert executable(pod.process("keeper")) == str(PREFIX / "bin/containerd-shim-kata-v2")
    unnoticed.deletions = 1


def test_back_and_forth_between_state_formats(
    kept: Ctr, container: str, pod_of: Callable[[str], Pod], unnoticed: Noticed, upgrade, tmp_path: Path
) -> None:
    older, newer = (Installation.copy(tmp_path / version, version) for version in ("0.0.9", NEW))
    older.read_one_state_format()
    pod = pod_of(container)
    state = pod.directory / "state"
    assert state_format(state) == 2
    assert upgrade(older, container)[0] == 0
    assert state_format(state) == 1
    assert kept.exec(container, "e1", "sh", "-c", "exit 4").code == 4
    assert upgrade(newer, container)[0] == 0
    assert state_format(state) == 2
    assert versions(pod) == [__version__, "0.0.9", NEW]
    assert kept.exec(container, "e2", "sh", "-c", "exit 5").code == 5
    unnoticed.deletions = 1


def state_format(path: Path) -> int:
    return [found["version"] for found in map(json.loads, path.read_text().splitlines()) if "version" in found][-1]
