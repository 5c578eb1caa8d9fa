"""containerd restarted at every step of a pod's life: the pod is neither lost nor leaked."""

from collections.abc import Callable

import pytest

from integration.cri.conftest import STAY, Pods
from integration.harness import cri, leaks, process
from integration.harness import pods as on_disk
from integration.harness.cri import CriContainerd, Release
from integration.harness.crictl import Crictl
from integration.harness.ctr import PATIENCE
from integration.harness.host import Host
from integration.harness.waiting import eventually

#: How containerd goes: asked to, or killed.
Restart = Callable[[CriContainerd], None]


def politely(containerd: CriContainerd) -> None:
    containerd.stop()
    containerd.start()


def by_force(containerd: CriContainerd) -> None:
    containerd.kill()
    containerd.start()


@pytest.fixture(params=[politely, by_force])
def restart(request: pytest.FixtureRequest, release: Release) -> Restart:
    """Both ways on both versions in the long form; without, 1.6 is asked and 2.4 is killed."""
    if not request.config.getoption("--long") and (request.param is by_force) != release.nri:
        pytest.skip("the other version's share; --long has both")
    return request.param


def test_at_each_step_of_a_life(pods: Pods, crictl: Crictl, containerd: CriContainerd, restart: Restart) -> None:
    pod_id = pods.run()
    restart(containerd)
    assert crictl.pods()[pod_id] == "SANDBOX_READY", "after the sandbox's start"
    container_id = pods.create(pod_id, "sh", "-c", "echo up; trap 'exit 3' TERM; while :; do sleep 0.1; done")
    restart(containerd)
    assert crictl.state(container_id) == "CONTAINER_CREATED", "after the container's creation"
    crictl.start(container_id)
    log = pods.directory / "main.log"
    eventually("the container's first line", lambda: log.exists() and "up" in log.read_text(), within=PATIENCE)
    restart(containerd)
    assert crictl.state(container_id) == "CONTAINER_RUNNING", "after the container's start"
    assert crictl.exec(container_id, "echo", "still here").ok().out == "still here"
    crictl("stop", "--timeout", "30", container_id).ok()
    restart(containerd)
    status = crictl.inspect(container_id)["status"]
    assert (status["state"], status["exitCode"]) == ("CONTAINER_EXITED", 3), "after the container's end"
    crictl("rm", container_id).ok()
    restart(containerd)
    again = pods.start(pod_id, *STAY, name="again")
    assert crictl.state(again) == "CONTAINER_RUNNING", "a new container after the restart"
    crictl.stopp(pod_id)
    restart(containerd)
    assert crictl.pods()[pod_id] == "SANDBOX_NOTREADY", "after the pod's end"
    crictl.rmp(pod_id)
    restart(containerd)
    assert pod_id not in crictl.pods()


def test_a_container_that_ends_while_containerd_is_away(
    pods: Pods, crictl: Crictl, containerd: CriContainerd, tmp_path
) -> None:
    gate = tmp_path / "gate"
    gate.mkdir()
    pod_id = pods.run()
    script = "until [ -e /gate/open ]; do sleep 0.1; done; touch /gate/ended; exit 6"
    mounts = [{"host_path": str(gate), "container_path": "/gate"}]
    container_id = pods.start(pod_id, "sh", "-c", script, mounts=mounts)
    containerd.stop()
    (gate / "open").touch()
    eventually("the container's last act", (gate / "ended").exists, within=PATIENCE)
    containerd.start()
    assert crictl.await_exit(container_id) == 6


def test_output_while_containerd_is_away_is_not_lost(
    pods: Pods, crictl: Crictl, containerd: CriContainerd, tmp_path
) -> None:
    """Less than a pipe holds: it waits there for the one who copies it into the log."""
    gate = tmp_path / "gate"
    gate.mkdir()
    pod_id = pods.run()
    script = "until [ -e /gate/open ]; do sleep 0.1; done; echo while away; touch /gate/said; sleep 86400"
    container_id = pods.start(pod_id, "sh", "-c", script, mounts=[{"host_path": str(gate), "container_path": "/gate"}])
    containerd.stop()
    (gate / "open").touch()
    eventually("the container's line", (gate / "said").exists, within=PATIENCE)
    containerd.start()
    assert crictl.state(container_id) == "CONTAINER_RUNNING"
    log = pods.directory / "main.log"
    eventually("the line in the log", lambda: "while away" in log.read_text(), within=PATIENCE)


@pytest.mark.vm
@pytest.mark.parametrize("step", ["sandbox", "container"])
def test_containerd_killed_during_a_creation(
    pods: Pods, crictl: Crictl, containerd: CriContainerd, host: Host, scene: leaks.Scene, step: str
) -> None:
    """Nobody learns of what was being made: it goes, and the same can be made again."""
    before = leaks.snapshot(scene)
    words = crictl.runp_words(cri.pod_config("killed", log_directory=str(pods.directory)))
    if step == "container":
        pod_id = pods.run()
        created = pods.create(pod_id, *STAY)
        words = ["start", created]
    known = {pod.name for pod in on_disk.all_pods(host.run_dir)}
    client = crictl.spawn(*words)
    try:
        eventually("the creation to begin", lambda: _begun(host, known, step), within=PATIENCE)
        containerd.kill()
    finally:
        client.wait(PATIENCE)
        process.finish(client)
    containerd.start()
    if step == "container":
        crictl("rm", "--force", created).ok()
        assert crictl.state(pods.start(pod_id, *STAY, name="again")) == "CONTAINER_RUNNING"
    # The pod that was being made ends by itself meanwhile; a call that meets its end is made again, as the kubelet does.
    eventually("no pod left", lambda: _removed(crictl), within=PATIENCE)
    assert leaks.report(leaks.await_no_leak(scene, before)) == ""
    crictl.rmp(pods.run("again"))


@pytest.mark.vm
@pytest.mark.v3
@pytest.mark.parametrize("verb", ["stop", "stopp", "rmp"])
def test_containerd_killed_while_a_pod_is_taken_away(
    pods: Pods, crictl: Crictl, containerd: CriContainerd, host: Host, scene: leaks.Scene, verb: str
) -> None:
    """The next one goes on where the first one was: what is asked for again is done, and nothing is left."""
    before = leaks.snapshot(scene)
    pod_id = pods.run()
    # It does not end by SIGTERM, so the grace period is under way when containerd dies.
    container_id = pods.start(pod_id, "sh", "-c", "trap '' TERM; while :; do sleep 86400; done")
    words = {
        "stop": ("stop", "--timeout", "60", container_id),
        "stopp": ("stopp", pod_id),
        "rmp": ("rmp", "-f", pod_id),
    }
    client = crictl.spawn(*words[verb])
    try:
        eventually("the first signal", lambda: _asked(host, "Kill"), within=PATIENCE)
        containerd.kill()
    finally:
        client.wait(PATIENCE)
        process.finish(client)
    containerd.start()
    eventually("no pod left", lambda: _removed(crictl), within=PATIENCE)
    assert leaks.report(leaks.await_no_leak(scene, before)) == ""
    assert crictl.pods() == {}


def _asked(host: Host, rpc: str) -> bool:
    """Whether the daemon of a pod that is there was asked for it."""
    journals = [pod.journal() for pod in on_disk.all_pods(host.run_dir)]
    return any(event.get("rpc") == rpc for journal in journals for event in journal)


def _removed(crictl: Crictl) -> bool:
    return all(crictl("rmp", "--force", pod_id).code == 0 for pod_id in crictl.pods())


def _begun(host: Host, known: set[str], step: str) -> bool:
    """A machine is being booted; or Create is under way in one that runs."""
    for pod in on_disk.all_pods(host.run_dir):
        journal = pod.journal() if (host.run_dir / "journal" / f"{pod.name}.jsonl").exists() else []
        begun = [event for event in journal if event.get("event") == "rpc-began" and event.get("rpc") == "Create"]
        if (pod.name not in known and begun) if step == "sandbox" else len(begun) > 1:
            return True
    return False
