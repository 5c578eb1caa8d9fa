"""Containers are grouped into pods by what their annotations say, in the words of containerd, CRI-O and dockershim."""

import pytest

from integration.harness import pods
from integration.harness.ctr import PATIENCE, Ctr
from integration.harness.host import Host
from integration.harness.waiting import eventually

pytestmark = pytest.mark.vm

#: Keys for a container's type and its sandbox, and the type's word for a sandbox.
DIALECTS = {
    "containerd": ("io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id", "sandbox"),
    "cri-o": ("io.kubernetes.cri-o.ContainerType", "io.kubernetes.cri-o.SandboxID", "sandbox"),
    "dockershim": ("io.kubernetes.docker.type", "io.kubernetes.sandbox.id", "podsandbox"),
}
STAY = ("sh", "-c", "while :; do sleep 86400; done")


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_container_joins_the_machine_of_its_sandbox(ctr: Ctr, host: Host, name: str, dialect: str) -> None:
    kind, sandbox, word = DIALECTS[dialect]
    before = {pod.name for pod in pods.all_pods(host.run_dir)}
    member = f"{name}-member"
    ctr.start(name, *STAY, annotations={kind: word})
    try:
        ctr.start(member, *STAY, annotations={kind: "container", sandbox: name})
        made = {pod.name for pod in pods.all_pods(host.run_dir)} - before
        assert made == {pods.pod_hash(str(ctr.containerd.address), ctr.namespace, name)}
        boots = [ctr.exec(where, "boot", "cat", "/proc/sys/kernel/random/boot_id").ok().out for where in (name, member)]
        assert boots[0] == boots[1]
    finally:
        ctr.remove(member)
        ctr.remove(name)


def test_an_unknown_type_is_refused_beside_a_pod_that_lives(ctr: Ctr, name: str) -> None:
    kind, sandbox, _ = DIALECTS["containerd"]
    ctr.start(name, *STAY, annotations={kind: "sandbox"})
    try:
        done = ctr.run(f"{name}-x", "true", annotations={kind: "neither", sandbox: name})
        assert done.code != 0 and "is not one" in done.err, done
        assert ctr.exec(name, "well", "echo", "well").ok().out == "well"
    finally:
        ctr.remove(f"{name}-x")
        ctr.remove(name)


def test_a_sandbox_that_ends_by_itself_takes_its_containers_with_it(ctr: Ctr, name: str) -> None:
    kind, sandbox, _ = DIALECTS["containerd"]
    member = f"{name}-member"
    ctr.start(name, *STAY, annotations={kind: "sandbox"})
    try:
        ctr.start(member, *STAY, annotations={kind: "container", sandbox: name})
        ctr.kill(name).ok()
        ended = {name: "STOPPED", member: "STOPPED"}
        eventually(
            "the ends of both",
            lambda: ended.items() <= {i: s for i, (_, s) in ctr.tasks().items()}.items(),
            within=PATIENCE,
        )
        said = [ctr.delete_task(where).ok().err for where in (member, name)]
        assert "exit code 255" in said[0] or "exit code 137" in said[0], said
        assert "exit code 137" in said[1], said
    finally:
        ctr.remove(member)
        ctr.remove(name)
