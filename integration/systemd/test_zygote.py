"""Units whose daemons are forks of the node's zygote, which is a service as well."""

import asyncio
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from integration.conftest import PREFIX
from integration.harness.waiting import eventually
from integration.keeper.verbs.client import PATIENCE, Caller
from integration.keeper.verbs.test_ends import finish, state
from integration.systemd.lives import over_a_container
from integration.systemd.manager import Systemd
from integration.systemd.stage import UnitStage
from kata_shimd.cli.systemd import ZYGOTE, texts

ROOT: Final = Path(__file__).parents[2]


@pytest.fixture
def zygote(systemd: Systemd, stage: UnitStage) -> Iterator[None]:
    """The service, as it is installed, but for what it forks."""
    command = f"{sys.executable} -m integration.systemd.zygote {stage.shim.run_dir} {stage.root}/bin/python3"
    text, replaced = re.subn(
        "(?m)^ExecStart=.*", f"Environment=PYTHONPATH={ROOT}\nExecStart={command}", texts(PREFIX)[ZYGOTE]
    )
    assert replaced == 1
    systemd.unit(ZYGOTE, text)
    systemd.systemctl("start", ZYGOTE)
    yield
    systemd.systemctl("stop", ZYGOTE)


def status(stage: UnitStage, pid: int) -> dict[str, str]:
    text = (stage.systemd.inside / f"proc/{pid}/status").read_text()
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


def test_the_fork_is_the_units_main_process(zygote: None, stage: UnitStage) -> None:
    async def body(caller: Caller, ended: "asyncio.Task[int]") -> None:
        daemon = stage.pid("daemon")
        found = status(stage, daemon)
        assert (found["Name"], found["PPid"]) == ("kata-pod", "1"), "an orphan that the zygote forked"
        assert stage.state("MainPID") == str(daemon)
        groups = (stage.systemd.inside / f"proc/{daemon}/cgroup").read_text()
        assert f"/kata.slice/{stage.unit}" in groups
        assert (stage.systemd.inside / f"proc/{daemon}/oom_score_adj").read_text() == "500\n"
        stage.systemd.systemctl("restart", ZYGOTE)
        assert (await state(caller), stage.pid("daemon")) == (2, daemon)
        for _ in range(2):
            await asyncio.to_thread(stage.kill_daemon)
            assert (await state(caller), stage.state("MainPID")) == (2, str(stage.pid("daemon")))
        stage.guest.finish("pod", 7)
        assert await ended == 7
        await finish(stage, caller)

    with stage.systemd.tuned("OOMScoreAdjust=500"):
        over_a_container(stage, body)
        eventually("nothing left", stage.is_gone, within=PATIENCE)
    assert stage.guest.sessions == 1


def test_a_zygote_whose_orphans_are_somebody_elses_is_passed_over(systemd: Systemd, stage: UnitStage) -> None:
    """systemd would not see the end of such a daemon."""
    adopt = "import ctypes, subprocess, sys; ctypes.CDLL(None).prctl(36, 1, 0, 0, 0); subprocess.run(sys.argv[1:])"
    words = [sys.executable, "-m", "integration.systemd.zygote", stage.shim.run_dir, stage.root / "bin/python3"]
    other = [
        "systemd-run",
        "--quiet",
        "--unit=other",
        f"--setenv=PYTHONPATH={ROOT}",
        sys.executable,
        "-c",
        adopt,
        *words,
    ]
    assert systemd.run(other).returncode == 0
    try:
        eventually("the zygote", (stage.shim.run_dir / "zygote.sock").exists, within=PATIENCE)
        stage.shim.start("pod", **stage.env).ok()
        assert status(stage, stage.pid("daemon"))["Name"] != "kata-pod"
        assert stage.state("MainPID") == str(stage.pid("daemon"))
        systemd.systemctl("stop", stage.unit)
    finally:
        systemd.systemctl("stop", "other.service")
    eventually("nothing left", stage.is_gone, within=PATIENCE)
