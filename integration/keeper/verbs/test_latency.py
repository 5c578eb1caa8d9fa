"""How long a call waits when the daemon dies under it, with and without a spare."""

import os

import pytest

from integration.harness.process import find
from integration.harness.waiting import eventually
from integration.keeper.verbs.client import PATIENCE
from integration.keeper.verbs.latency import assert_quick
from integration.keeper.verbs.stage import Stage
from kata_shimd.ledger import read


def daemon_of(stage: Stage) -> int:
    return next(r.fields["pid"] for r in read(stage.shim.pod("pod")).live.values() if r.fields.get("what") == "daemon")


def kill_daemon(stage: Stage) -> None:
    before = daemon_of(stage)
    victim = find(before)
    assert victim is not None
    victim.kill()
    eventually("another daemon", lambda: daemon_of(stage) != before, within=PATIENCE)


@pytest.mark.parametrize("spare", [False, True], ids=["cold", "spare"])
def test_a_call_waits_less_than_containerd_does(stage: Stage, spare: bool) -> None:
    with (stage.root / "configuration.toml").open("a") as config:
        config.write(f"keeper_spare = {str(spare).lower()}\n")
    stage.shim.start("pod", **stage.env).ok()
    eventually("the boot", stage.booted, within=PATIENCE)
    assert_quick("spare" if spare else "cold", stage, lambda: kill_daemon(stage))
    nice = os.getpriority(os.PRIO_PROCESS, stage.pod.process("keeper").pid)
    served = lambda: os.getpriority(os.PRIO_PROCESS, daemon_of(stage)) == nice  # noqa: E731
    eventually("a daemon that goes first no longer", served, within=PATIENCE)
    assert spare or stage.niceness()[-1] < nice
