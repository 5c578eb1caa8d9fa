"""What a pod's specification gives its containers: names, name servers, kernel settings, namespaces, users, memory, volumes."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.cri.conftest import STAY, Pods
from integration.harness.crictl import Crictl
from integration.harness.ctr import PATIENCE
from integration.harness.waiting import eventually

#: What the pod of this module has: all that concerns the sandbox is set in one pod.
POD = {
    "hostname": "some-host",
    "dns_config": {"servers": ["10.10.10.10"], "searches": ["example.test"], "options": ["ndots:8"]},
    "linux": {
        "sysctls": {"net.ipv4.ip_unprivileged_port_start": "1024", "kernel.shm_rmid_forced": "1"},
        "security_context": {"namespace_options": {"pid": 0}},
    },
}


@pytest.fixture(scope="module")
def first(shared: Pods, pod_id: str) -> str:
    return shared.start(pod_id, *STAY, name="first")


@pytest.fixture
def start(crictl: Crictl, shared: Pods, pod_id: str) -> Iterator[object]:
    """Starts a container of the test that stays; gone afterwards."""
    ids: list[str] = []

    def start(name: str, **more: object) -> str:
        ids.append(shared.start(pod_id, *STAY, name=name, **more))
        return ids[-1]

    yield start
    for container_id in ids:
        crictl("rm", "--force", container_id).ok()


def ask(crictl: Crictl, container_id: str, *argv: str) -> str:
    return crictl.exec(container_id, *argv).ok().out


def test_hostname(crictl: Crictl, first: str) -> None:
    assert ask(crictl, first, "hostname") == "some-host"
    assert "some-host" in ask(crictl, first, "cat", "/etc/hostname")


def test_name_servers(crictl: Crictl, first: str) -> None:
    lines = ask(crictl, first, "cat", "/etc/resolv.conf").splitlines()
    assert lines == ["search example.test", "nameserver 10.10.10.10", "options ndots:8"]


@pytest.mark.parametrize("key", sorted(POD["linux"]["sysctls"]))
def test_kernel_settings_of_the_pod(crictl: Crictl, first: str, key: str) -> None:
    assert ask(crictl, first, "cat", f"/proc/sys/{key.replace('.', '/')}") == POD["linux"]["sysctls"][key]


def test_a_shared_process_namespace(crictl: Crictl, first: str, start) -> None:
    """Each sees the other's processes, and the pod's pause is everybody's process 1."""
    script = {"linux": {"security_context": {"namespace_options": {"pid": 0}}}}
    one, other = start("pid-a", **script), start("pid-b", **script)
    ask(crictl, one, "sh", "-c", "sleep 7777 >/dev/null 2>&1 &")
    assert "sleep 7777" in ask(crictl, other, "ps")
    assert "pause" in ask(crictl, one, "cat", "/proc/1/comm")


def test_a_process_namespace_of_its_own(crictl: Crictl, start) -> None:
    own = start("pid-own", linux={"security_context": {"namespace_options": {"pid": 1}}})
    assert "sh" in ask(crictl, own, "cat", "/proc/1/comm")
    assert "pause" not in ask(crictl, own, "ps")


def test_user_groups_and_capabilities(crictl: Crictl, start) -> None:
    context = {
        "run_as_user": {"value": 1000},
        "run_as_group": {"value": 3000},
        "supplemental_groups": [2000],
        "capabilities": {"drop_capabilities": ["ALL"]},
        "no_new_privs": True,
    }
    container_id = start("user", linux={"security_context": context})
    assert ask(crictl, container_id, "id", "-u") == "1000"
    assert ask(crictl, container_id, "id", "-g") == "3000"
    assert "2000" in ask(crictl, container_id, "id", "-G").split()
    status = dict(line.split(":\t", 1) for line in ask(crictl, container_id, "cat", "/proc/self/status").splitlines())
    assert int(status["CapEff"], 16) == 0
    assert status["NoNewPrivs"] == "1"


def test_a_read_only_root(crictl: Crictl, start) -> None:
    container_id = start("read-only", linux={"security_context": {"readonly_rootfs": True}})
    assert "Read-only file system" in crictl.exec(container_id, "touch", "/x").err


def test_seccomp_of_the_runtime_is_on(crictl: Crictl, start) -> None:
    container_id = start("seccomp", linux={"security_context": {"seccomp": {"profile_type": 0}}})
    assert "Seccomp:\t2" in ask(crictl, container_id, "cat", "/proc/self/status")


@pytest.mark.vm
def test_a_privileged_container_has_the_guests_devices_only(crictl: Crictl, pods: Pods) -> None:
    """Every capability that containerd itself has, and none of the node's devices."""
    context = {"linux": {"security_context": {"privileged": True}}}
    container_id = pods.start(pods.run(**context), *STAY, **context)
    ours, theirs = Path("/proc/self/status").read_text(), ask(crictl, container_id, "cat", "/proc/self/status")
    assert capabilities(theirs) == capabilities(ours)
    seen = set(ask(crictl, container_id, "ls", "/dev").split())
    assert "kvm" not in seen
    assert "null" in seen


def capabilities(status: str) -> int:
    return int(re.search(r"CapEff:\t(\w+)", status)[1], 16)


def test_shared_memory_is_the_pods(crictl: Crictl, first: str, start) -> None:
    other = start("shm")
    ask(crictl, first, "sh", "-c", "echo from-first > /dev/shm/note")
    assert ask(crictl, other, "cat", "/dev/shm/note") == "from-first"
    fields = ask(crictl, other, "df", "-k", "/dev/shm").splitlines()[-1].split()
    assert (fields[0], fields[1]) == ("shm", "65536")


def test_a_directory_of_the_host(crictl: Crictl, start, tmp_path: Path) -> None:
    """Both write, each sees the other's file; a read-only one refuses."""
    mounts = [
        {"host_path": str(tmp_path), "container_path": "/data"},
        {"host_path": str(tmp_path), "container_path": "/ro", "readonly": True},
    ]
    container_id = start("volume", mounts=mounts)
    ask(crictl, container_id, "sh", "-c", "echo guest > /data/guest")
    assert (tmp_path / "guest").read_text() == "guest\n"
    (tmp_path / "host").write_text("host")
    eventually("the host's file", lambda: "host" in ask(crictl, container_id, "ls", "/data").split(), within=PATIENCE)
    assert ask(crictl, container_id, "cat", "/ro/host") == "host"
    assert "Read-only file system" in crictl.exec(container_id, "touch", "/ro/x").err


def test_a_file_of_the_host(crictl: Crictl, start, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    container_id = start("file", mounts=[{"host_path": str(tmp_path / "file"), "container_path": "/etc/file"}])
    assert ask(crictl, container_id, "cat", "/etc/file") == "content"


def test_a_config_map_that_changes(crictl: Crictl, start, tmp_path: Path) -> None:
    """The kubelet writes a new directory and turns a link to it: the container sees the new content, never half of it."""
    _write_config(tmp_path, "one")
    container_id = start("config", mounts=[{"host_path": str(tmp_path), "container_path": "/config", "readonly": True}])
    assert ask(crictl, container_id, "cat", "/config/key") == "one"
    _write_config(tmp_path, "two")
    eventually("the new content", lambda: ask(crictl, container_id, "cat", "/config/key") == "two", within=PATIENCE)


def _write_config(volume: Path, value: str) -> None:
    """As the kubelet's atomic writer does."""
    version = volume / f"..{value}"
    version.mkdir()
    (version / "key").write_text(value)
    fresh = volume / "..data_tmp"
    fresh.symlink_to(version.name)
    fresh.replace(volume / "..data")
    if not (volume / "key").is_symlink():
        (volume / "key").symlink_to("..data/key")
