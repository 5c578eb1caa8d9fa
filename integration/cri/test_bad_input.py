"""What cannot be is refused: the exact sentence that `crictl` shows, nothing left, and what ``kata-shimd why`` says of it.

Much is refused by containerd itself and reaches no runtime; those tests say so and hold that nothing of ours was begun. What
containerd would never ask for comes to us all the same through handlers that change what it asks
(`integration.harness.faults`).
"""

import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from integration.conftest import PREFIX
from integration.cri.conftest import STAY, Pods
from integration.harness import cri, faults, image, leaks
from integration.harness import pods as on_disk
from integration.harness.cri import CriContainerd, Release, pod_config
from integration.harness.crictl import Crictl
from integration.harness.ctr import PATIENCE, Ctr, Done
from integration.harness.host import Host
from integration.harness.pods import Pod
from integration.harness.records import Records
from integration.harness.waiting import eventually

pytestmark = pytest.mark.vm

TYPE: Final = "io.kubernetes.cri.container-type"
MEMORY: Final = "io.katacontainers.config.hypervisor.default_memory"
NETNS: Final = r"/var/run/netns/cni-[0-9a-f-]+"
#: What containerd puts around a runtime's sentence, by version; what it was doing stands before it.
_FRAME: Final = re.compile(
    r'(?:failed to start sandbox "\w+": )?failed to create containerd task: '
    r"failed to (?:create shim task|start shim: start failed): (?P<ours>.*?)\n?(?:: exit status 1)?"
    r"(?:: (?:unknown|unavailable|invalid argument|failed precondition|not found))?",
    re.DOTALL,
)


def said(done: Done) -> str:
    """What `crictl` tells its user last: which call failed, and containerd's description."""
    assert done.code != 0, done
    quoted = re.findall(r'level=(?:error|fatal) msg=("(?:[^"\\]|\\.)*")', done.err)
    call, _, description = json.loads(quoted[-1]).partition(": rpc error: ")
    return re.sub(r' "\w{64}"$', "", call) + ": " + description.partition(" desc = ")[2]


def ours(done: Done, call: str) -> str:
    """The runtime's own sentence out of it, without the frame that containerd puts around."""
    begin, _, rest = said(done).partition(": ")
    assert begin == call, done
    framed = _FRAME.fullmatch(rest)
    assert framed is not None, rest
    return framed["ours"]


@dataclass(slots=True)
class Refused:
    """The journals that began during a refusal: containerd tells nobody the id of a sandbox that failed."""

    host: Host
    before: set[Path]
    #: Verdicts of these, known once it is over.
    verdicts: list[str] = field(default_factory=list)

    def close(self) -> None:
        journals = set((self.host.run_dir / "journal").glob("*.jsonl")) - self.before
        self.verdicts = [verdict(self.host, journal.stem) for journal in journals]


@pytest.fixture
def refusing(crictl: Crictl, host: Host, scene: leaks.Scene, containerd: CriContainerd):
    """What happens inside leaves nothing: neither on the host (`leaks`: pod directories, namespaces, links, mounts, processes …),
    nor in containerd's records.
    """
    records = Records(Ctr(containerd, cri.NAMESPACE), crictl)

    @contextmanager
    def refusing() -> Iterator[Refused]:
        things, noted = leaks.snapshot(scene), records()
        refused = Refused(host, set((host.run_dir / "journal").glob("*.jsonl")))
        yield refused
        assert leaks.report(leaks.await_no_leak(scene, things)) == ""
        assert records.new_since(noted) == []
        refused.close()

    return refusing


@pytest.fixture
def runp(crictl: Crictl, name: str) -> Callable[..., Done]:
    """`crictl runp` with a handler."""

    def runp(handler: str = "kata", **more: object) -> Done:
        other = dataclasses.replace(crictl, handler=handler)
        return other(*other.runp_words(pod_config(name, **more)))

    return runp


def why(host: Host, pod_id: str) -> str:
    done = host.run([PREFIX / "bin/kata-shimd", "why", pod_id, "--run-dir", host.run_dir])
    assert done.stdout, done
    return done.stdout.decode()


def verdict(host: Host, pod_id: str) -> str:
    """The last line: what it comes down to."""
    return why(host, pod_id).splitlines()[-1]


@pytest.mark.v3
class TestContainerType:
    """containerd writes it itself; a pod's annotations cannot change it."""

    def test_an_unknown_one(self, runp, refusing) -> None:
        sentence = f'find container type: {TYPE}: "pod" is not one; it is sandbox or container, or is not there at all'
        with refusing() as refused:
            done = runp(faults.ODD_TYPE)
        assert ours(done, "run pod sandbox") == sentence
        assert refused.verdicts == [f"It was refused before there was a pod: {sentence}."]

    def test_a_container_that_names_no_sandbox(self, containerd, crictl, refusing, name: str) -> None:
        """`crictl` has no way to say it, nor has its containerd: this is `ctr`'s."""
        ctr = Ctr(containerd, cri.NAMESPACE, image=image.NAME)
        sentence = "the container names no sandbox; annotate it with io.kubernetes.cri.sandbox-id"
        with refusing() as refused:
            done = ctr.run(name, "true", annotations={TYPE: "container"})
            ctr.remove(name)
        assert f"find sandbox: {TYPE}: {sentence}" in done.err and done.code != 0, done
        assert refused.verdicts == [f"It was refused before there was a pod: find sandbox: {TYPE}: {sentence}."]


class TestDeadPod:
    """A container of a pod that is no longer."""

    def test_that_reaches_us(
        self, pods: Pods, crictl: Crictl, containerd, host: Host, release: Release, refusing, name: str
    ) -> None:
        if release.env:
            pytest.skip(
                "over v3 containerd brings a container to the sandbox's own shim, and refuses it where there is none"
            )
        dead = pods.run()
        pods.remove(dead)
        faults.lead_to(containerd.home, dead)
        living = Pods(dataclasses.replace(crictl, handler=faults.OTHER_POD), f"{name}-living", pods.directory)
        with refusing():
            pod_id = living.run()
            container_id = living.create(pod_id, "true")
            done = crictl("start", container_id)
            living.remove(pod_id)
        sentence = f"find pod: sandbox {dead}: no daemon serves its pod; its sandbox must be started first"
        assert ours(done, "starting the container") == sentence
        assert verdict(host, container_id) == f"Its start was refused: {sentence}."
        assert verdict(host, dead).startswith("Nothing went wrong"), "the pod itself did well"

    @pytest.mark.v3
    def test_whose_daemon_was_killed_is_containerds_to_refuse(
        self, pods: Pods, crictl: Crictl, containerd, host: Host, refusing
    ) -> None:
        with refusing() as refused:
            pod_id = pods.run()
            container_id = pods.create(pod_id, *STAY)
            Pod(host.run_dir, on_disk.pod_hash(str(containerd.address), cri.NAMESPACE, pod_id)).process("daemon").kill()
            eventually("the end of it", lambda: crictl.pods()[pod_id] == "SANDBOX_NOTREADY", within=PATIENCE)
            done = crictl("start", container_id)
            crictl.rmp(pod_id)
        assert said(done) == f'starting the container: sandbox container "{pod_id}" is not running'
        [told] = refused.verdicts
        assert told.startswith("The daemon died without a word after its last event") and "containerd's log" in told

    def test_that_was_stopped_is_containerds_to_refuse(self, pods: Pods, crictl: Crictl, release, refusing) -> None:
        with refusing() as refused:
            pod_id = pods.run()
            crictl.stopp(pod_id)
            late = cri.container_config("late", image.NAME, ["true"])
            done = crictl(*crictl.create_words(pod_id, late, pods.configs[pod_id]))
            crictl.rmp(pod_id)
        no_task = f"failed to get sandbox container task: no running task found: task {pod_id} not found: not found"
        expected = f'sandbox container "{pod_id}" is not running' if release.nri else no_task
        assert said(done) == f"creating container: {expected}"
        [told] = refused.verdicts
        assert told.startswith("Nothing went wrong")


@pytest.mark.v3
class TestNetwork:
    """What containerd's plugins leave, or do not."""

    def test_a_namespace_that_is_gone(self, runp, refusing) -> None:
        """Its last plugin takes it away, after containerd has looked."""
        with refusing() as refused:
            sentence = ours(runp(faults.LOST_NETNS), "run pod sandbox")
        hint = "was the pod's network taken down, or never set up?"
        assert re.fullmatch(
            f"open network namespace: {NETNS}: No such file or directory; {re.escape(hint)}", sentence
        ), sentence
        assert did_not_boot(refused, sentence)

    def test_no_address_is_containerds_to_refuse(self, runp, refusing) -> None:
        """It asks its plugins for one and no runtime: there is no pod that `why` could know of."""
        with refusing() as refused:
            done = runp(faults.NO_ADDRESS)
        assert re.fullmatch(
            r'run pod sandbox: failed to setup network for sandbox "(\w+)": failed to find network info for sandbox "\1"',
            said(done),
        )
        assert refused.verdicts == []

    def test_an_address_that_was_told_and_is_not_there(self, runp, refusing) -> None:
        with refusing() as refused:
            sentence = ours(runp(faults.LOST_ADDRESS), "run pod sandbox")
        hint = "see what the CNI plugins answered; is the ipam section missing?"
        assert re.fullmatch(
            f"read pod network: {NETNS}: no interface has an address \\(eth0\\); {re.escape(hint)}", sentence
        ), sentence
        assert did_not_boot(refused, sentence)

    def test_a_plugin_that_fails_is_containerds_to_refuse(self, runp, refusing) -> None:
        with refusing() as refused:
            done = runp(faults.CNI_FAILS)
        cause = 'plugin type="cni-fails" failed (add): the switch has no port left'
        assert re.fullmatch(
            f'run pod sandbox: failed to setup network for sandbox "\\w+": {re.escape(cause)}', said(done)
        )
        assert refused.verdicts == []

    def test_the_hosts(self, runp, refusing) -> None:
        with refusing() as refused:
            done = runp(linux={"security_context": {"namespace_options": {"network": 2}}})
        assert ours(done, "run pod sandbox") == (
            "join network: the spec has no network namespace: it is the host's network namespace, "
            "which a virtual machine cannot be in; run it without host network (hostNetwork, --net-host)"
        )
        assert did_not_boot(refused, ours(done, "run pod sandbox"))


def did_not_boot(refused: Refused, sentence: str) -> bool:
    """Whether `why` says of the one pod that it failed with the same sentence before there was a machine."""
    [told] = refused.verdicts
    begin = r"The VM did not boot \(in phase network, [\d.]+ s after the start\): "
    return re.fullmatch(begin + re.escape(f"{sentence}."), told) is not None


class TestCommand:
    """What a container is to run."""

    def test_an_image_without_an_entry_point_is_containerds_to_refuse(
        self, pods: Pods, crictl: Crictl, containerd, refusing, tmp_path: Path
    ) -> None:
        nameless = "registry.invalid/kata-shimd/no-entry-point:test"
        packed = image.pack(image.tree(), {**image.CONFIG, "config": {"Env": [image.IMAGE_PATH]}})
        image.write_archive(tmp_path / "image.tar", {nameless: packed})
        Ctr(containerd, cri.NAMESPACE)("image", "import", tmp_path / "image.tar").ok()
        pod_id = pods.run()
        with refusing() as refused:
            container = {"metadata": {"name": "none", "attempt": 0}, "image": {"image": nameless}}
            done = crictl(*crictl.create_words(pod_id, container, pods.configs[pod_id]))
        assert said(done).endswith("no command specified"), done
        assert refused.verdicts == [] and "Nothing went wrong" in verdict(crictl.containerd.host, pod_id)

    def test_none_that_reaches_us(
        self, crictl: Crictl, host: Host, release, refusing, name: str, tmp_path: Path
    ) -> None:
        if release.env:
            pytest.skip("over v3 no program stands between containerd and our daemon that could ask for it")
        pods = Pods(dataclasses.replace(crictl, handler=faults.NO_ARGS), name, tmp_path)
        pod_id = pods.run()
        try:
            with refusing():
                container_id = pods.create(pod_id, "true")
                sentence = ours(crictl("start", container_id), "starting the container")
                crictl("rm", container_id).ok()
            assert re.fullmatch(
                rf"read process: \S+/{container_id}/config\.json: args is empty: there is nothing to run; "
                "give it a command, or an image with an entry point",
                sentence,
            ), sentence
            assert verdict(host, pod_id) == f"Create failed with INVALID_ARGUMENT: {sentence}."
        finally:
            pods.remove(pod_id)

    @pytest.mark.v3
    def test_a_program_that_is_not_there(self, pods: Pods, crictl: Crictl, host: Host, refusing) -> None:
        pod_id = pods.run()
        with refusing():
            container_id = pods.create(pod_id, "/no/such/program")
            sentence = ours(crictl("start", container_id), "starting the container")
            crictl("rm", container_id).ok()
        assert sentence == (
            f"agent CreateContainer: {container_id}: crun create: {container_id}: "
            "executable file `/no/such/program` not found in $PATH: No such file or directory"
        )
        assert verdict(host, pod_id) == f"Create failed with INVALID_ARGUMENT: {sentence}."
        assert crictl.pods()[pod_id] == "SANDBOX_READY", "the pod is none the worse"


@pytest.mark.v3
def test_an_annotation_that_is_not_enabled(runp, refusing, containerd: CriContainerd) -> None:
    """Refused at the sandbox's start, before there is anything to leave."""
    with refusing() as refused:
        sentence = ours(runp(annotations={MEMORY: "1024"}), "run pod sandbox")
    begin, _, cause = sentence.partition(": load configuration: ")
    assert re.fullmatch(r"start daemon: \w{64}: exited with 1 before it was ready", begin), sentence
    assert cause == (
        f'annotation {MEMORY}: is not enabled; add "default_memory" to enable_annotations in [hypervisor.qemu]; '
        f"see `kata-shimd config check {containerd.home}/kata.toml`"
    )
    [told] = refused.verdicts
    assert cause in told
