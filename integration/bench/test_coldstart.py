"""The benchmark measures what it says. Nothing is asserted about time; memory is another matter, whoever else is busy."""

import os
from pathlib import Path

import pytest

from integration.bench import coldstart, pod

pytestmark = pytest.mark.vm

LAUNCHER = Path(os.environ.get("KATA_SHIMD_PREFIX", "/opt/kata-shimd")) / "bin/containerd-shim-kata-v2"
#: 60 MB, what a guest may have taken for itself when it is ready.
MOST_MIB = 60_000_000 / pod.MIB

MEMINFO = "MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable: 700 kB\nBuffers: 10 kB\nCached: 90 kB\nHugePages_Total: 0\n"


def test_a_cold_pod_from_start_to_first_byte() -> None:
    measured = coldstart.cold_pod(LAUNCHER)
    assert 0 < measured.started < measured.ready < measured.first_byte
    assert list(measured.phases) == ["network", "check", "share", "spawn", "qmp", "dial"]
    assert 10 < measured.used_mib <= MOST_MIB


def test_memory_is_what_is_neither_available_nor_page_cache() -> None:
    assert pod.used(MEMINFO) == 200 * 1024


def test_a_table_has_medians_ranges_and_aims() -> None:
    pods = [pod.Timeline(0.1, ready, ready * 1.5, {"dial": 1000.0}, 40) for ready in (1.0, 2.0, 3.0)]
    text = coldstart.table(pods, [1.0, 1.0, 1.0], [1.0, 1.0, 2.0])
    assert "| ready: the agent has made the sandbox | 2.00 | 2.00 | 3 |" in text
    assert "| ready ÷ (b) | 1.50 | ≤ 1.3 |" in text
    assert "| first byte ÷ ready | 1.50 | ≤ 1.4 |" in text
    assert "| MiB the guest uses | 40.00 | ≤ 57 (60 MB) |" in text
