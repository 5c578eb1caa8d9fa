"""The short form of the soak: enough to see a descriptor that each container leaves, and a pod that leaves anything."""

from dataclasses import replace

import pytest

from integration.harness import leaks
from integration.harness.ctr import Ctr
from integration.harness.host import Host
from integration.soak import soak


def test_containers_of_one_pod_leave_nothing_in_the_daemon(ctr: Ctr, host: Host) -> None:
    samples = list(soak.containers(ctr, host.run_dir, 15))
    assert len(samples) == 15
    assert soak.complaints(samples) == []


def test_pods_in_sequence_leave_nothing_on_the_host(ctr: Ctr, scene: leaks.Scene) -> None:
    assert len(list(soak.pods_in_sequence(ctr, scene, 2))) == 2


def _flat(count: int) -> list[soak.Sample]:
    """A daemon that leaves nothing; looked into where it has to be."""
    objects = soak.Objects(tracked=40_000, blocks=140_000)
    return [
        soak.Sample(n, 30, 1, 60_000, 50_000, 20_000, 1.0, objects if n in soak.marks(count) else None)
        for n in range(1, count + 1)
    ]


def _complaints(count: int, **last: object) -> list[str]:
    samples = _flat(count)
    return soak.complaints([*samples[:-1], replace(samples[-1], **last)])  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [15, 200])
def test_whatever_each_container_leaves_is_a_complaint(count: int) -> None:
    """The judgement itself: a descriptor, a thread, an object, a text."""
    made = count - soak.marks(count)[0]
    assert _complaints(count) == []
    assert _complaints(count, fds=31)
    assert _complaints(count, threads=2)
    assert _complaints(count, objects=soak.Objects(40_000 + made, 140_000))
    assert _complaints(count, objects=soak.Objects(40_000, 140_000 + 2 * made + soak.LOOKING))
    assert _complaints(count, objects=None)


def test_memory_that_rises_all_the_time_is_a_complaint_and_a_single_step_is_none() -> None:
    rising = [replace(one, own_kib=20_000 + 3 * one.number) for one in _flat(200)]
    assert soak.slope(rising) == pytest.approx(3.0)
    assert soak.complaints(rising)
    step = [replace(one, own_kib=20_000 + 120 * (one.number > 150)) for one in _flat(200)]
    assert soak.complaints(step) == []
    assert soak.slope(_flat(15)) is None
