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
from integration.cri.conftest import Pods
from integration.harness import cri, faults, image, leaks
from integration.harness.cri import CriContainerd, pod_config
from integration.harness.crictl import Crictl
from integration.harness.ctr import Ctr, Done
from integration.harness.host import Host
from integration.harness.records import Records

pytestmark = pytest.mark.vm

TYPE: Final = "io.kubernetes.cri.container-type"
SANDBOX: Final = "io.kubernetes.cri.sandbox-id"
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


@pytest.fixture
def ctr(containerd: CriContainerd, crictl: Crictl) -> Ctr:
    """For annotations that the CRI plugin writes itself and lets nobody choose. The images came with ``crictl``."""
    return Ctr(containerd, cri.NAMESPACE, image=image.NAME)


@pytest.fixture
def fails(ctr: Ctr, scene: leaks.Scene) -> Callable[..., Done]:
    """Runs with annotations; it fails, and nothing is left."""

    def run(container_id: str, **annotations: str) -> Done:
        before = leaks.snapshot(scene)
        keys = {name.replace("_", "-"): value for name, value in annotations.items()}
        named = {"type": TYPE, "sandbox": SANDBOX}
        done = ctr.run(container_id, "true", annotations={named[key]: value for key, value in keys.items()})
        assert done.code != 0, done
        ctr.remove(container_id)
        assert leaks.report(leaks.await_no_leak(scene, before)) == ""
        return done

    return run


def test_the_sandbox_of_a_pod_that_is_dead(fails, pods: Pods, host: Host, name: str) -> None:
    pod_id = pods.run()
    pods.remove(pod_id)
    done = fails(name, type="container", sandbox=pod_id)
    cause = f"find pod: sandbox {pod_id}: no daemon serves its pod"
    assert cause in done.err
    assert cause in verdict(host, name)
    assert "Nothing went wrong" in verdict(host, pod_id), "the pod itself did well"


def test_a_container_in_a_pod_that_has_ended(pods: Pods, crictl: Crictl) -> None:
    pod_id = pods.run()
    crictl.stopp(pod_id)
    container = cri.container_config("late", image.NAME, ["true"])
    done = crictl(*crictl.create_words(pod_id, container, pods.configs[pod_id]))
    assert done.code != 0
    assert "not" in done.err and pod_id in done.err, done


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


def test_an_image_without_an_entry_point(
    pods: Pods, crictl: Crictl, ctr: Ctr, tmp_path: Path, scene: leaks.Scene
) -> None:
    nameless = "registry.invalid/kata-shimd/no-entry-point:test"
    packed = image.pack(image.tree(), {**image.CONFIG, "config": {"Env": [image.IMAGE_PATH]}})
    image.write_archive(tmp_path / "image.tar", {nameless: packed})
    ctr("image", "import", tmp_path / "image.tar").ok()
    pod_id = pods.run()
    before = leaks.snapshot(scene)
    container = {"metadata": {"name": "none", "attempt": 0}, "image": {"image": nameless}}
    done = crictl(*crictl.create_words(pod_id, container, pods.configs[pod_id]))
    assert done.code != 0
    assert "no command specified" in done.err, done
    assert leaks.report(leaks.await_no_leak(scene, before)) == ""


def test_a_program_that_is_not_there_is_explained(pods: Pods, crictl: Crictl, host: Host) -> None:
    pod_id = pods.run()
    container_id = pods.create(pod_id, "/no/such/program")
    done = crictl("start", container_id)
    assert done.code != 0 and "/no/such/program" in done.err, done
    assert "/no/such/program" in why(host, pod_id)
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
