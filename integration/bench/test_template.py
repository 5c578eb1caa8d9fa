"""The benchmark of templates measures what it says. Nothing is asserted about time."""

import os
from pathlib import Path

import pytest

from integration.bench import template
from integration.bench.pod import Timeline

pytestmark = pytest.mark.vm

LAUNCHER = Path(os.environ.get("KATA_SHIMD_PREFIX", "/opt/kata-shimd")) / "bin/containerd-shim-kata-v2"
GUEST = Path(os.environ.get("KATA_SHIMD_GUEST", "/var/lib/kata-shimd/guest/current"))


def test_a_cloned_pod_beside_a_booted_one() -> None:
    with template.configurations(GUEST, LAUNCHER) as (cold, cloned):
        booted, copied = (template.measure(LAUNCHER, config) for config in (cold, cloned))
    assert all(0 < pod.started < pod.ready < pod.first_byte for pod in (booted, copied))
    assert list(booted.phases) == ["network", "check", "share", "spawn", "qmp", "dial"]
    wanted = ["network", "check", "share", "template", "spawn", "qmp", "memory", "load", "dial", "identity"]
    assert list(copied.phases) == wanted


def test_a_table_has_both_and_their_ratios() -> None:
    cold = [Timeline(0.2, ready, ready + 1, {"dial": 1000.0}, 40) for ready in (2.2, 3.2, 4.2)]
    cloned = [Timeline(0.2, 0.7, 1.2, {"dial": 100.0}, 40) for _ in cold]
    text = template.table(cold, cloned)
    assert "| booted: ready | 3.20 | 2.00 | 3 |" in text
    assert "| cloned: dial | 0.10 | 0.00 | 3 |" in text
    assert "| VM ready, from `start` answered | 0.17 |" in text
    assert "| first byte | 0.29 | ≤ 0.3 |" in text
