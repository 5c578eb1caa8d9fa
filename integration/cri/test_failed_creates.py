"""Creations that fail, wherever they do, leave nothing, and a retry works.

After each record of the daemon's ledger the daemon is killed, or the record cannot be written. The records are counted by the
daemon itself, so the loops end where a creation has survived, and a record that is added later is covered at once. ``--long``
tries every point in both ways on both versions; without, they share the points: 1.6 sees the daemon killed at every odd one, 2.4
sees every even one that cannot be written.
"""

from collections.abc import Callable, Iterator

import pytest

from integration.cri.conftest import STAY, Pods
from integration.harness import cri, leaks
from integration.harness import pods as on_disk
from integration.harness.cri import CriContainerd, Release
from integration.harness.crictl import Crictl
from integration.harness.ctr import Done
from integration.harness.host import Host
from integration.harness.pods import Pod
from integration.harness.scale import SCALE

pytestmark = pytest.mark.vm

WAYS = ("KATA_SHIMD_DIE_AT", "KATA_SHIMD_FAIL_AT")
#: More records than any creation writes; ends a loop that a bug would make endless.
MANY = 60
#: Records that the launcher has written before the daemon's first.
LAUNCHERS = 5
GONE = 15.0 * SCALE


@pytest.fixture(params=WAYS)
def way(release: Release, request: pytest.FixtureRequest) -> str:
    if not request.config.getoption("--long") and request.param != WAYS[release.nri]:
        pytest.skip("the other version's share; --long has both")
    return request.param


@pytest.fixture
def points(release: Release, request: pytest.FixtureRequest) -> Callable[[int], Iterator[int]]:
    """From a record on: every one, or this version's share of them."""
    long, rest = request.config.getoption("--long"), int(not release.nri)
    return lambda first: (point for point in range(first, MANY) if long or point % 2 == rest)


@pytest.fixture
def injecting(containerd: CriContainerd) -> Iterator[Callable[..., None]]:
    """Restarts containerd with an environment for its launchers; the fixture's end is without."""

    def restart(**env: str) -> None:
        containerd.stop()
        containerd.start(**env)

    yield restart
    restart()


def test_of_a_sandbox(crictl: Crictl, scene: leaks.Scene, points, way: str, injecting, name: str) -> None:
    failed = 0
    for point in points(1):
        injecting(**{way: f"daemon:{point}"})
        before = leaks.snapshot(scene)
        done = run(crictl, f"{name}-{point}")
        clear(crictl)
        assert leaks.report(leaks.await_no_leak(scene, before, within=GONE)) == "", f"{way} {point}: {done}"
        if done.code == 0:
            break
        failed += 1
        assert done.err, f"{way} {point}"
        injecting()
        run(crictl, f"{name}-{point}").ok()
        clear(crictl)
    assert 1 < failed < MANY - 1


def test_of_a_container(
    pods: Pods, crictl: Crictl, host: Host, containerd: CriContainerd, scene: leaks.Scene, points, way: str, injecting
) -> None:
    first = records_of_a_sandbox(pods, crictl, host, containerd) + 1
    failed = 0
    for point in points(first):
        injecting(**{way: f"daemon:{point}"})
        before = leaks.snapshot(scene)
        pod_id = pods.run(f"-{point}")
        container_id = pods.create(pod_id, *STAY)
        running = leaks.snapshot(scene)
        done = crictl("start", container_id)
        if done.code != 0 and way == "KATA_SHIMD_FAIL_AT":
            retry_in_the_same_pod(pods, crictl, pod_id, container_id, scene, running)
        clear(crictl)
        assert leaks.report(leaks.await_no_leak(scene, before, within=GONE)) == "", f"{way} {point}: {done}"
        if done.code == 0:
            break
        failed += 1
    assert 0 < failed < MANY - first


def retry_in_the_same_pod(
    pods: Pods, crictl: Crictl, pod_id: str, container_id: str, scene: leaks.Scene, before: leaks.Snapshot
) -> None:
    """The pod lives on; of the failed container there is nothing, and another can take its place."""
    crictl("rm", "--force", container_id).ok()
    assert leaks.report(leaks.await_no_leak(scene, before, within=GONE)) == "", container_id
    again = pods.start(pod_id, *STAY, name="again")
    assert crictl.exec(again, "echo", "well").ok().out == "well"


def records_of_a_sandbox(pods: Pods, crictl: Crictl, host: Host, containerd: CriContainerd) -> int:
    """How many records its daemon has written when a sandbox runs."""
    pod_id = pods.run("-counted")
    pod = Pod(host.run_dir, on_disk.pod_hash(str(containerd.address), cri.NAMESPACE, pod_id))
    lines = (pod.directory / "ledger").read_text().splitlines()
    crictl.rmp(pod_id)
    return len(lines) - LAUNCHERS


def run(crictl: Crictl, name: str, **more: object) -> Done:
    return crictl(*crictl.runp_words(cri.pod_config(name, **more)))


def clear(crictl: Crictl) -> None:
    for pod_id in crictl.pods():
        crictl.rmp(pod_id)
