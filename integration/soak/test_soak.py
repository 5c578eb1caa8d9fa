"""The short form of the soak: enough to see a descriptor that each container leaves, and a pod that leaves anything."""

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


def test_a_descriptor_more_is_a_complaint() -> None:
    """The judgement itself."""
    flat = [soak.Sample(n, fds=30, threads=1, pss_kib=50_000, seconds=1) for n in range(1, 16)]
    assert soak.complaints(flat) == []
    assert soak.complaints([*flat, soak.Sample(16, 31, 1, 50_000, 1)]) != []
    assert soak.complaints([*flat, soak.Sample(16, 30, 2, 50_000, 1)]) != []
    assert soak.complaints([*flat, soak.Sample(16, 30, 1, 60_000, 1)]) != []
