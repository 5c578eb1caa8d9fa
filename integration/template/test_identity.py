"""Two clones have nothing in common that tells one machine from another, and know what time it is."""

import json
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from integration.harness import cni, process
from integration.harness.ctr import Ctr
from integration.harness.host import Host
from integration.harness.pods import Pod, pod_hash
from integration.harness.sandbox import sandbox
from integration.harness.scale import SCALE
from integration.net.conftest import bridge_of
from integration.net.test_reach import PYTHON
from integration.template.conftest import GUEST, Templates

pytestmark = pytest.mark.vm

#: Says who it is, then the time for each line that it is given.
SELF = """
import json, os, sys, time, pathlib
read = lambda path: pathlib.Path(path).read_text().strip()
print(json.dumps({
    "boot id": read("/proc/sys/kernel/random/boot_id"),
    "random": os.urandom(16).hex(),
    "uuid": read("/proc/sys/kernel/random/uuid"),
    "mac": read("/sys/class/net/eth0/address"),
}), flush=True)
for line in sys.stdin:
    print(time.time_ns(), flush=True)
"""
ANSWERS = 9


@contextmanager
def clone(templates: Templates, name: str, netns: cni.Namespace) -> Iterator["subprocess.Popen[bytes]"]:
    pairs = (pair.split(":") for pair in PYTHON[:3])
    mounts = [word for src, dst in pairs for word in ("--mount", f"type=bind,src={src},dst={dst},options=rbind:ro")]
    options = ["--rm", *cni.words([netns.path]), *mounts]
    words = templates.ctr.run_words(
        name, "/usr/bin/python3", "-I", "-S", "-c", SELF, options=options, config=templates.config
    )
    client = templates.ctr.spawn(*words, stdin=subprocess.PIPE)
    try:
        yield client
        assert client.stdin is not None
        client.stdin.close()
        assert client.wait(45 * SCALE) == 0
    finally:
        process.finish(client)
        templates.ctr.remove(name)


def said(client: "subprocess.Popen[bytes]") -> dict[str, Any]:
    assert client.stdout is not None and client.stderr is not None
    line = client.stdout.readline()
    assert line, client.stderr.read().decode()
    return dict(json.loads(line))


def ahead(client: "subprocess.Popen[bytes]") -> tuple[float, float]:
    """Seconds that the guest's clock is ahead of ours, and how far off that may be: half of the quickest answer's time."""
    assert client.stdin is not None and client.stdout is not None
    answers = []
    for _ in range(ANSWERS):
        asked = time.time_ns()
        client.stdin.write(b"?\n")
        client.stdin.flush()
        told = int(client.stdout.readline())
        answered = time.time_ns()
        answers.append(((answered - asked) / 1e9, (told - (asked + answered) / 2) / 1e9))
    within, offset = min(answers)
    return offset, within / 2


def secret(ctr: Ctr, name: str) -> str:
    """Of the pod's session with its agent."""
    containerd = ctr.containerd
    pod = Pod(containerd.host.run_dir, pod_hash(str(containerd.address), ctr.namespace, name))
    return str(pod.ledger().values["agent-secret"])


@pytest.fixture(scope="module")
def network(host: Host) -> Iterator[cni.Network]:
    yield from bridge_of(host, "kt1", "10.89.0.0/24")


def test_two_clones_differ_in_everything(standing: Templates, host: Host, network: cni.Network, name: str) -> None:
    names = (f"{name}-a", f"{name}-b")
    who, secrets, clocks = [], set(), []
    for each in names:
        with cni.namespace(host, each[-12:], network) as netns, clone(standing, each, netns) as client:
            who.append(said(client))
            secrets.add(secret(standing.ctr, each))
            clocks.append(ahead(client))
    assert all(standing.is_cloned(each) for each in names)
    assert [key for key in who[0] if who[0][key] == who[1][key]] == []
    assert len(secrets) == 2
    assert all(abs(offset) <= 0.05 + uncertain for offset, uncertain in clocks), clocks
    print("clocks ahead by", [f"{offset * 1000:.1f} ms ± {uncertain * 1000:.1f}" for offset, uncertain in clocks])


def test_clones_have_the_host_names_of_their_pods(
    standing: Templates, rootfs_dir: Path, tmp_path: Path, name: str
) -> None:
    for hostname in ("one", "another"):
        with sandbox(standing.ctr, name, rootfs_dir, tmp_path, config=standing.config, hostname=hostname) as pod:
            assert pod.ctr.exec(pod.id, "e", "hostname").ok().out == hostname
            assert standing.is_cloned(pod.id)


def test_the_guest_has_no_machine_id_that_clones_could_share() -> None:
    listed = subprocess.run(["unsquashfs", "-l", GUEST / "rootfs.img"], check=True, capture_output=True, text=True)
    files = listed.stdout.splitlines()
    assert "squashfs-root/usr/bin/mount" in files
    assert [file for file in files if file.endswith("/machine-id")] == []


def test_what_one_clone_writes_to_its_memory_no_other_sees(standing: Templates, name: str) -> None:
    before = (standing.directory / "state").read_bytes(), (standing.directory / "memory").stat()
    standing.run(
        f"{name}-a", "sh", "-c", "dd if=/dev/urandom of=/dev/shm/x bs=1M count=16; cat /dev/shm/x | wc -c"
    ).ok()
    after = (standing.directory / "state").read_bytes(), (standing.directory / "memory").stat()
    assert standing.is_cloned(f"{name}-a")
    assert before == after


def test_ready_is_sooner_than_a_boot_of_the_same(standing: Templates, name: str) -> None:
    """That it is a clone at all; by how much it is sooner is the benchmark's."""
    cold = standing.config.with_name("cold.toml")
    cold.write_text(standing.config.read_text().replace("enable_template = true", "enable_template = false"))
    spent = {True: [], False: []}
    for number in range(2):
        for cloned, config in ((True, standing.config), (False, cold)):
            each = f"{name}-{number}-{cloned}".lower()
            standing.ctr.run(each, "true", config=config).ok()
            events = standing.journal(each)
            began = next(event["t"] for event in events if event["event"] == "accelerator")
            spent[cloned].append(next(event["t"] for event in events if event["event"] == "agent-ready") - began)
            assert standing.is_cloned(each) is cloned
    assert statistics.median(spent[True]) < statistics.median(spent[False])
