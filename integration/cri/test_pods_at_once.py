"""Many pods at once, created and removed, some of which fail, each at another point of its life.

Those that should succeed do; the others end with an error that says what it was, and `why` knows it; nothing is left of any.
Eight in CI, twenty in the long form.
"""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from integration.conftest import PREFIX
from integration.cri.conftest import STAY, Pods
from integration.harness import cri, faults, image, leaks
from integration.harness import pods as on_disk
from integration.harness.cri import CriContainerd
from integration.harness.crictl import Crictl
from integration.harness.ctr import PATIENCE, Ctr
from integration.harness.host import Host
from integration.harness.pods import Pod
from integration.harness.records import Records
from integration.harness.scale import SCALE
from integration.harness.waiting import eventually
from kata_shimd.journal import read as read_journal

pytestmark = pytest.mark.vm

#: A machine that many others share needs longer for all of them.
GONE = 30.0 * SCALE
MEMORY = "io.katacontainers.config.hypervisor.default_memory"


@dataclass(slots=True)
class Crowd:
    """One method for each fate of a pod; each returns the pods that it leaves to be removed."""

    crictl: Crictl
    containerd: CriContainerd
    host: Host
    prefix: str

    def well(self, number: int) -> list[str]:
        pod_id, container_id = self._start(number, *STAY)
        assert self.crictl.exec(container_id, "echo", str(number)).ok().out == str(number)
        return [pod_id]

    def refused_at_once(self, number: int) -> list[str]:
        return self._fails(number, "kata", 'is not enabled; add "default_memory"', annotations={MEMORY: "1024"})

    def no_network(self, number: int) -> list[str]:
        return self._fails(
            number, faults.CNI_FAILS, 'plugin type="cni-fails" failed (add): the switch has no port left'
        )

    def kernel_that_cannot_boot(self, number: int) -> list[str]:
        return self._fails(
            number, faults.NO_INIT, "the guest rebooted, as it does one second after its kernel panicked"
        )

    def daemon_dies_while_it_boots(self, number: int) -> list[str]:
        return self._fails(number, faults.DIES, "failed to create shim task: ttrpc: closed")

    def full_disk_after_the_boot(self, number: int) -> list[str]:
        return self._fails(number, faults.FULL, "No space left on device; is the run directory full or read-only?")

    def no_such_program(self, number: int) -> list[str]:
        pod_id = self.crictl.runp(self._config(number))
        container_id = self._create(number, pod_id, "/no/such/program")
        done = self.crictl("start", container_id)
        assert done.code != 0 and "executable file `/no/such/program` not found" in done.err, done
        assert "executable file `/no/such/program` not found" in self._why(pod_id)
        assert self.crictl.state(container_id) == "CONTAINER_EXITED"
        self.crictl("rm", container_id).ok()
        assert self.crictl.pods()[pod_id] == "SANDBOX_READY", "the pod is none the worse"
        return [pod_id]

    def daemon_killed_while_it_runs(self, number: int) -> list[str]:
        pod_id, container_id = self._start(number, *STAY)
        Pod(self.host.run_dir, on_disk.pod_hash(str(self.containerd.address), cri.NAMESPACE, pod_id)).process(
            "daemon"
        ).kill()
        assert self.crictl.await_exit(container_id) in (137, 255)
        eventually("its end told", lambda: self.crictl.pods()[pod_id] == "SANDBOX_NOTREADY", within=PATIENCE)
        assert "The daemon died without a word" in self._why(pod_id)
        return [pod_id]

    def _config(self, number: int, **more: object) -> dict[str, object]:
        return cri.pod_config(f"{self.prefix}-{number}", **more)

    def _start(self, number: int, *command: str) -> tuple[str, str]:
        pod_id = self.crictl.runp(self._config(number))
        container_id = self._create(number, pod_id, *command)
        self.crictl.start(container_id)
        return pod_id, container_id

    def _create(self, number: int, pod_id: str, *command: str) -> str:
        container = cri.container_config("main", image.NAME, command)
        return self.crictl.create(pod_id, container, self._config(number))

    def _fails(self, number: int, handler: str, sentence: str, **more: object) -> list[str]:
        other = dataclasses.replace(self.crictl, handler=handler)
        done = other(*other.runp_words(self._config(number, **more)))
        assert done.code != 0 and sentence in done.err.replace('\\"', '"'), done
        return []

    def _why(self, pod_id: str) -> str:
        return self.host.run([PREFIX / "bin/kata-shimd", "why", pod_id, "--run-dir", self.host.run_dir]).stdout.decode()


#: In CI each once, and one more that should do well.
FATES: tuple[Callable[[Crowd, int], list[str]], ...] = (
    Crowd.well,
    Crowd.kernel_that_cannot_boot,
    Crowd.daemon_killed_while_it_runs,
    Crowd.no_such_program,
    Crowd.full_disk_after_the_boot,
    Crowd.daemon_dies_while_it_boots,
    Crowd.no_network,
    Crowd.well,
)
#: Twenty more often does well, as pods mostly do.
LONG = (*FATES, Crowd.refused_at_once, *itertools.repeat(Crowd.well, 4), *FATES[1:])


def test_pods_at_once_some_failing(
    pods: Pods,
    crictl: Crictl,
    containerd: CriContainerd,
    host: Host,
    scene: leaks.Scene,
    name: str,
    request: pytest.FixtureRequest,
) -> None:
    fates = LONG if request.config.getoption("--long") else FATES
    crowd = Crowd(crictl, containerd, host, name)
    records = Records(Ctr(containerd, cri.NAMESPACE), crictl)
    before, noted, journals = leaks.snapshot(scene), records(), set((host.run_dir / "journal").glob("*.jsonl"))
    with ThreadPoolExecutor(len(fates)) as pool:
        begun = [pool.submit(fate, crowd, number) for number, fate in enumerate(fates)]
        left = [pod_id for future in begun for pod_id in future.result()]
        assert set(left) == set(crictl.pods()), "a pod that failed is still listed"
        list(pool.map(crictl.rmp, left))
    assert leaks.report(leaks.await_no_leak(scene, before, within=GONE)) == ""
    assert records.new_since(noted) == []
    wanted = Counter(faults.STEPS[fate.__name__] for fate in fates if fate.__name__ in faults.STEPS)
    assert injected(set((host.run_dir / "journal").glob("*.jsonl")) - journals) == wanted


def injected(journals: set[Path]) -> Counter[str]:
    """Where the faults came that daemons were to have: what a line of the ledger is about moves when a creation writes more."""
    events = [event for journal in journals for event in read_journal(journal)]
    return Counter(event["step"] for event in events if event["event"] == "fault-injected")
