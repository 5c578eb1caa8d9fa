"""How long a call waits when the daemon of a unit dies under it."""

from integration.keeper.verbs.latency import assert_quick
from integration.systemd.lives import started
from integration.systemd.stage import UnitStage


def test_a_call_waits_less_than_containerd_does(stage: UnitStage) -> None:
    started(stage)
    assert_quick("systemd", stage, stage.kill_daemon)
