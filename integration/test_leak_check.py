"""The leak check sees each kind of leak: every one is made here on purpose, must be reported, and is taken away again."""

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from integration.harness import leaks, process
from integration.harness.ctr import Ctr
from integration.harness.leaks import Scene

#: Its child has ended, and it sleeps on without waiting for it.
NEGLIGENT = """
import os, time
pid = os.fork() or os._exit(0)
os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
print(flush=True)
time.sleep(4713)
"""


@contextmanager
def leaking(scene: Scene, kind: str, part: str) -> Iterator[None]:
    """What the block makes is reported as ``kind``, with ``part`` in its sentence."""
    before = leaks.snapshot(scene)
    yield
    leaked = leaks.new_things(before, leaks.snapshot(scene))
    assert any(part in thing for thing in leaked.get(kind, [])), f"no {kind} with {part!r} in {leaked}"
    assert f"leaked {kind}: " in leaks.report(leaked)


def run(scene: Scene, *words: str | Path) -> None:
    done = scene.host.run(words)
    assert done.returncode == 0, done.stderr


def test_nothing_is_reported_of_nothing(scene: Scene) -> None:
    before = leaks.snapshot(scene)
    assert leaks.await_no_leak(scene, before, within=0.0) == {}


def test_a_process(scene: Scene) -> None:
    with leaking(scene, "process", "sleep 4711"):
        child = process.spawn(["sleep", "4711"])
    process.finish(child)


def test_a_process_that_cut_itself_loose(scene: Scene) -> None:
    """A daemon is nobody's child but ours: we are the subreaper."""
    with leaking(scene, "process", "sleep 4712"):
        shell = "sleep 4712 </dev/null >/dev/null 2>&1 & echo $!"
        done = subprocess.run(["setsid", "sh", "-c", shell], capture_output=True, check=True)
    daemon = process.find(int(done.stdout))
    assert daemon is not None
    daemon.kill()
    process.reap_orphans()


def test_a_zombie_that_somebody_else_keeps(scene: Scene) -> None:
    with leaking(scene, "process", "zombie"):
        parent = process.spawn(["python3", "-I", "-c", NEGLIGENT], stdout=subprocess.PIPE)
        assert parent.stdout is not None and parent.stdout.readline() == b"\n"
    process.finish(parent)


def test_a_mount(scene: Scene) -> None:
    target = scene.host.root / "mounted"
    target.mkdir()
    with leaking(scene, "mount", str(target)):
        run(scene, "mount", "-t", "tmpfs", "left-behind", target)
    run(scene, "umount", target)
    target.rmdir()


def test_a_mount_in_a_namespace_that_survives(scene: Scene) -> None:
    target = scene.host.root / "elsewhere"
    target.mkdir()
    script = 'mount -t tmpfs left-behind "$0" && echo ready && exec sleep 4714'
    with leaking(scene, "mount", f"{target} (tmpfs left-behind) in mnt:"):
        child = process.spawn(["unshare", "--mount", "sh", "-c", script, target], stdout=subprocess.PIPE)
        assert child.stdout is not None and child.stdout.readline() == b"ready\n"
    process.finish(child)
    target.rmdir()


def test_a_mount_outside_the_private_host(scene: Scene) -> None:
    target = scene.host.root / "outside"
    target.mkdir()
    with leaking(scene, "mount", "outside the private host"):
        subprocess.run(["mount", "-t", "tmpfs", "left-behind", target], check=True)
    subprocess.run(["umount", target], check=True)
    target.rmdir()


def test_a_link(scene: Scene) -> None:
    with leaking(scene, "link", "link left0 "):
        run(scene, "ip", "link", "add", "left0", "type", "bridge")
    run(scene, "ip", "link", "del", "left0")


def test_traffic_control(scene: Scene) -> None:
    with leaking(scene, "link", "ingress"):
        run(scene, "tc", "qdisc", "add", "dev", "lo", "ingress")
    run(scene, "tc", "qdisc", "del", "dev", "lo", "ingress")


def test_a_named_network_namespace_and_its_link(scene: Scene) -> None:
    before = leaks.snapshot(scene)
    run(scene, "ip", "netns", "add", "left")
    run(scene, "ip", "-n", "left", "link", "add", "left1", "type", "bridge")
    leaked = leaks.new_things(before, leaks.snapshot(scene))
    run(scene, "ip", "netns", "del", "left")
    assert leaked["netns"] == ["/run/netns/left"]
    assert any(thing.startswith("link left1 ") and thing.endswith("in left") for thing in leaked["link"])


def test_a_link_in_a_surviving_process_s_namespace(scene: Scene) -> None:
    script = "ip link add left2 type bridge && echo ready && exec sleep 4715"
    with leaking(scene, "link", "link left2 "):
        child = process.spawn(["unshare", "--net", "sh", "-c", script], stdout=subprocess.PIPE)
        assert child.stdout is not None and child.stdout.readline() == b"ready\n"
    process.finish(child)


@pytest.mark.parametrize("hierarchy", ["memory", "pids", "unified"])
def test_a_cgroup_in_any_hierarchy(scene: Scene, hierarchy: str) -> None:
    parent = Path("/sys/fs/cgroup", hierarchy)
    parent = parent if parent.is_dir() else Path("/sys/fs/cgroup")
    group = parent / f"left-by-{scene.tag}"
    with leaking(scene, "cgroup", str(group)):
        group.mkdir()
    group.rmdir()


def test_a_cgroup_named_by_a_pod(scene: Scene) -> None:
    """Our own cgroups bear the pod's hash, which the journal's file name tells."""
    journal = scene.host.run_dir / "journal"
    journal.mkdir(mode=0o700, parents=True, exist_ok=True)
    (journal / "0123456789abcdef0123.jsonl").touch()
    group = next(path for path in (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")) if path.is_dir())
    group /= "pod-0123456789abcdef0123"
    with leaking(scene, "cgroup", str(group)):
        group.mkdir()
    group.rmdir()
    (journal / "0123456789abcdef0123.jsonl").unlink()


def test_descriptors_of_containerd(scene: Scene) -> None:
    """Connections beyond the steady number; they are ours here, kept open to containerd's own socket."""
    assert scene.containerd is not None
    kept = []
    with leaking(scene, "descriptor", "unnamed descriptor number"):
        for _ in range(leaks.STEADY_FDS + 8):
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(str(scene.containerd.address))
            kept.append(connection)
        # Answered one by one, so all are accepted once another client has its answer.
        Ctr(scene.containerd, scene.tag)("version").ok()
    for connection in kept:
        connection.close()


def test_a_socket(scene: Scene) -> None:
    path = scene.host.root / "left.sock"
    script = "import socket, sys, time; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); print(flush=True); time.sleep(4716)"
    with leaking(scene, "socket", f"open socket {path}"):
        child = scene.host.spawn(["python3", "-I", "-c", script, path], stdout=subprocess.PIPE)
        assert child.stdout is not None and child.stdout.readline() == b"\n"
    process.finish(child)
    with_file = leaks.snapshot(scene)["socket"]
    assert f"socket file {path}" in with_file
    path.unlink()


@pytest.mark.parametrize("place", ["pods", "locks", "uids"])
def test_state_of_a_pod(scene: Scene, place: str) -> None:
    directory = scene.host.run_dir / place / "0123456789abcdef0123"
    with leaking(scene, "directory", str(directory)):
        directory.mkdir(parents=True)
    directory.rmdir()


@pytest.mark.parametrize(
    "place", ["dev/shm/ram", "run/containerd/fifo/left", "run/containerd/s/left", "run/kata-shimd/left"]
)
def test_files_in_shared_places(scene: Scene, place: str) -> None:
    path = scene.host.inside / place
    existing = [parent for parent in path.parents if parent.exists()]
    with leaking(scene, "directory", place):
        path.mkdir(parents=True)
    path.rmdir()
    for parent in path.parents:
        if parent in existing:
            break
        parent.rmdir()


def test_a_bundle(scene: Scene) -> None:
    assert scene.containerd is not None
    bundle = scene.containerd.bundle(scene.tag, "left")
    with leaking(scene, "directory", str(bundle)):
        bundle.mkdir(parents=True)
    bundle.rmdir()
    for parent in (bundle.parent, scene.containerd.root / "io.containerd.runtime.v2.task" / scene.tag):
        if parent.exists() and not any(parent.iterdir()):
            parent.rmdir()


def test_a_container_that_was_forgotten(scene: Scene, ctr: Ctr, name: str) -> None:
    """All at once, as it happens: a pod that nobody removed is seen as processes, mounts, sockets and directories."""
    before = leaks.snapshot(scene)
    ctr.start(name, "sleep", "4717")
    leaked = leaks.new_things(before, leaks.snapshot(scene))
    ctr.remove(name)
    assert {"process", "mount", "socket", "directory"} <= set(leaked)


def test_the_journal_is_no_leak(scene: Scene) -> None:
    before = leaks.snapshot(scene)
    journal = scene.host.run_dir / "journal"
    journal.mkdir(mode=0o700, parents=True, exist_ok=True)
    (journal / "fedcba9876543210fedc.jsonl").touch()
    assert leaks.new_things(before, leaks.snapshot(scene)) == {}
