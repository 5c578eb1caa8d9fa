"""Creations that fail, wherever they do, leave nothing, and a retry works.

After each line of the daemon's ledger the daemon is killed, or the line cannot be written. Which lines there are is read from
the ledger of a creation that nothing disturbs, and the journals of those that fail have to name the same ones: a line that is
added later is visited at once, and none is passed over. ``--long`` visits every line in both ways on every version; without,
they share the lines: 1.6 sees the daemon killed at every odd one, 2.4 sees every even one that cannot be written, and a
container over v3 the daemon killed at every fifth one.

Pods are booted: a clone that fails is followed by a boot, so the failure of a line would not be the creation's
(`integration/test_kill_points.py` and `integration/keeper/test_boot.py` go along a clone).
"""

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

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
from kata_shimd.journal import read as read_journal
from kata_shimd.ledger import step

pytestmark = pytest.mark.vm

DIES, FAILS = WAYS = ("KATA_SHIMD_DIE_AT", "KATA_SHIMD_FAIL_AT")
#: Lines that the launcher has written before the daemon's first.
LAUNCHERS = 5
GONE = 15.0 * SCALE


@pytest.fixture(params=WAYS)
def way(release: Release, request: pytest.FixtureRequest) -> str:
    others = FAILS if release.nri and not release.env else DIES
    if not request.config.getoption("--long") and request.param != others:
        pytest.skip("another version's share; --long has all")
    return request.param


@pytest.fixture
def share(release: Release, request: pytest.FixtureRequest) -> Callable[[Sequence[int]], list[int]]:
    """Of these numbers of lines: every one, or this version's."""
    every, rest = (5, 0) if release.env else (2, int(not release.nri))
    long = request.config.getoption("--long")
    return lambda points: [point for point in points if long or point % every == rest]


@dataclass(frozen=True, slots=True)
class Node:
    """Pods come and go on it, with a fault injected into their daemons or without."""

    pods: Pods
    crictl: Crictl
    host: Host
    containerd: CriContainerd
    scene: leaks.Scene

    def inject(self, **env: str) -> None:
        """Restart containerd with an environment for its launchers."""
        self.containerd.stop()
        self.containerd.start(**env)

    def steps(self) -> tuple[list[str], list[str]]:
        """What daemons write when nothing disturbs: a pod's lines, and then those of a container in it."""
        pod_id = self.pods.run("-whole")
        of_pod = self._lines(pod_id)
        self.pods.start(pod_id, *STAY)
        of_both = self._lines(pod_id)
        self.clear()
        return of_pod, of_both[len(of_pod) :]

    def _lines(self, pod_id: str) -> list[str]:
        pod = Pod(self.host.run_dir, on_disk.pod_hash(str(self.containerd.address), cri.NAMESPACE, pod_id))
        return [step(json.loads(line)) for line in (pod.directory / "ledger").read_text().splitlines()[LAUNCHERS:]]

    def journals(self) -> set[Path]:
        return set((self.host.run_dir / "journal").glob("*.jsonl"))

    def injected(self, before: set[Path]) -> list[str]:
        """The lines at which journals say that their daemon had a fault, of those that began since."""
        events = [event for journal in self.journals() - before for event in read_journal(journal)]
        return [event["step"] for event in events if event["event"] == "fault-injected"]

    def runp(self, name: str) -> Done:
        return self.crictl(*self.crictl.runp_words(cri.pod_config(f"{self.pods.prefix}-{name}")))

    def clear(self) -> None:
        for pod_id in self.crictl.pods():
            self.crictl.rmp(pod_id)

    def left(self, before: leaks.Snapshot) -> str:
        return leaks.report(leaks.await_no_leak(self.scene, before, within=GONE))


@pytest.fixture
def node(pods: Pods, crictl: Crictl, host: Host, containerd: CriContainerd, scene: leaks.Scene) -> Iterator[Node]:
    cold = dataclasses.replace(crictl, handler=cri.COLD)
    pods.crictl = cold
    made = Node(pods, cold, host, containerd, scene)
    yield made
    made.inject()


def test_of_a_sandbox(node: Node, share, way: str) -> None:
    steps, _ = node.steps()
    points = share(range(1, len(steps) + 1))
    visited = []
    for point in points:
        node.inject(**{way: f"daemon:{point}"})
        before, journals = leaks.snapshot(node.scene), node.journals()
        done = node.runp(str(point))
        assert done.code != 0 and done.err, f"{way} {point}: {done}"
        assert node.left(before) == "", f"{way} {point}: {done}"
        visited += node.injected(journals)
        node.inject()
        node.runp(str(point)).ok()
        node.clear()
    assert visited == [steps[point - 1] for point in points]
    assert survives_beyond(node, way, len(steps)), "a creation writes more than was visited"


def survives_beyond(node: Node, way: str, last: int) -> bool:
    """Whether a fault after the last line of a sandbox's creation finds nothing that it could disturb."""
    node.inject(**{way: f"daemon:{last + 1}"})
    journals = node.journals()
    node.runp("beyond").ok()
    hit = node.injected(journals)
    node.clear()
    return hit == []


@pytest.mark.v3
def test_of_a_container(node: Node, share, way: str) -> None:
    of_pod, steps = node.steps()
    points = share(range(len(of_pod) + 1, len(of_pod) + len(steps) + 1))
    visited = []
    for point in points:
        node.inject(**{way: f"daemon:{point}"})
        before, journals = leaks.snapshot(node.scene), node.journals()
        pod_id = node.pods.run(f"-{point}")
        container_id = node.pods.create(pod_id, *STAY)
        running = leaks.snapshot(node.scene)
        done = node.crictl("start", container_id)
        assert done.code != 0 and done.err, f"{way} {point}: {done}"
        if way == FAILS:
            retry_in_the_same_pod(node, pod_id, container_id, running)
        node.clear()
        assert node.left(before) == "", f"{way} {point}: {done}"
        visited += node.injected(journals)
        if way == DIES:
            retry_in_another_pod(node, point)
    assert visited == [steps[point - len(of_pod) - 1] for point in points]
    assert container_survives_beyond(node, way, len(of_pod) + len(steps)), "a creation writes more than was visited"


def retry_in_the_same_pod(node: Node, pod_id: str, container_id: str, before: leaks.Snapshot) -> None:
    """The pod lives on; of the failed container there is nothing, and another can take its place."""
    node.crictl("rm", "--force", container_id).ok()
    assert node.left(before) == "", container_id
    again = node.pods.start(pod_id, *STAY, name="again")
    assert node.crictl.exec(again, "echo", "well").ok().out == "well"


def retry_in_another_pod(node: Node, point: int) -> None:
    """The pod died with its daemon; another one of the same name takes its place, with the same container."""
    node.inject()
    pod_id = node.pods.run(f"-{point}")
    again = node.pods.start(pod_id, *STAY)
    assert node.crictl.exec(again, "echo", "well").ok().out == "well"
    node.clear()


def container_survives_beyond(node: Node, way: str, last: int) -> bool:
    node.inject(**{way: f"daemon:{last + 1}"})
    journals = node.journals()
    node.pods.start(node.pods.run("-beyond"), *STAY)
    hit = node.injected(journals)
    node.inject()  # the end of a life writes more, at which the fault would come
    node.clear()
    return hit == []
