"""What cannot be is refused with a sentence that says why, leaves nothing, and is explained by ``kata-shimd why``."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from integration.conftest import PREFIX
from integration.cri.conftest import Pods
from integration.harness import cri, image, leaks
from integration.harness.cri import CriContainerd, pod_config
from integration.harness.crictl import Crictl
from integration.harness.ctr import Ctr, Done
from integration.harness.host import Host

pytestmark = pytest.mark.vm

TYPE = "io.kubernetes.cri.container-type"
SANDBOX = "io.kubernetes.cri.sandbox-id"
MEMORY = "io.katacontainers.config.hypervisor.default_memory"


@pytest.fixture
def ctr(containerd: CriContainerd, crictl: Crictl) -> Ctr:
    """For annotations that the CRI plugin writes itself and lets nobody choose. The images came with ``crictl``."""
    return Ctr(containerd, cri.NAMESPACE, image=image.NAME)


@pytest.fixture
def fails(ctr: Ctr, scene: leaks.Scene):
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


def test_an_unknown_container_type(fails, host: Host, name: str) -> None:
    cause = f'find container type: {TYPE}: "pod" is not one'
    assert cause in fails(name, type="pod").err
    assert cause in verdict(host, name)


def test_a_container_that_names_no_sandbox(fails, host: Host, name: str) -> None:
    cause = "the container names no sandbox"
    assert cause in fails(name, type="container").err
    assert cause in verdict(host, name)


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


def test_a_pod_whose_configuration_cannot_be(
    crictl: Crictl, scene: leaks.Scene, host: Host, name: str, youngest: Callable[[], str]
) -> None:
    """Refused at the sandbox's start, before there is anything to leave."""
    before = leaks.snapshot(scene)
    done = crictl(*crictl.runp_words(pod_config(name, annotations={MEMORY: "much"})))
    assert done.code != 0
    assert MEMORY in done.err or "default_memory" in done.err, done
    assert "default_memory" in verdict(host, youngest())
    assert leaks.report(leaks.await_no_leak(scene, before)) == ""


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


def why(host: Host, pod_id: str) -> str:
    done = host.run([PREFIX / "bin/kata-shimd", "why", pod_id, "--run-dir", host.run_dir])
    assert done.stdout, done
    return done.stdout.decode()


def verdict(host: Host, pod_id: str) -> str:
    """The last line: what it comes down to."""
    return why(host, pod_id).splitlines()[-1]


@pytest.fixture
def youngest(host: Host) -> Iterator[Callable[[], str]]:
    """The one pod whose journal began during the test: containerd tells nobody the id of a sandbox that failed."""
    before = set((host.run_dir / "journal").glob("*.jsonl"))
    yield lambda: next(iter(set((host.run_dir / "journal").glob("*.jsonl")) - before)).stem


def test_a_network_namespace_that_is_gone(ctr: Ctr, scene: leaks.Scene, host: Host, name: str) -> None:
    before = leaks.snapshot(scene)
    done = ctr.run(name, "true", options=["--with-ns", "network:/run/netns/no-such"])
    assert done.code != 0
    assert "open network namespace: /run/netns/no-such" in done.err, done
    assert "open network namespace: /run/netns/no-such" in verdict(host, name)
    ctr.remove(name)
    assert leaks.report(leaks.await_no_leak(scene, before)) == ""


def test_the_hosts_network(
    crictl: Crictl, scene: leaks.Scene, host: Host, name: str, youngest: Callable[[], str]
) -> None:
    before = leaks.snapshot(scene)
    node = {"linux": {"security_context": {"namespace_options": {"network": 2}}}}
    done = crictl(*crictl.runp_words(pod_config(name, **node)))
    assert done.code != 0
    assert "host's network namespace" in done.err, done
    assert "host's network namespace" in verdict(host, youngest())
    assert leaks.report(leaks.await_no_leak(scene, before)) == ""


def test_a_network_that_gives_no_address(crictl: Crictl, scene: leaks.Scene, name: str) -> None:
    """containerd itself refuses what its plugin gave, and asks no runtime: there is no pod that `why` could know of. What ours says
    of such a namespace is in `integration/net/test_refused.py`.
    """
    before = leaks.snapshot(scene)
    other = dataclasses.replace(crictl, handler=cri.NO_ADDRESS)
    done = other(*other.runp_words(pod_config(name)))
    assert done.code != 0
    assert "network" in done.err and "sandbox" in done.err, done
    assert leaks.report(leaks.await_no_leak(scene, before)) == ""
