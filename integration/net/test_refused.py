"""Networks that a pod cannot be in: a clear error, nothing left, and `why` that tells it again."""

import subprocess
from pathlib import Path

import pytest

from integration.conftest import PREFIX
from integration.harness import cni
from integration.harness.ctr import Ctr, Done
from integration.harness.host import Host
from integration.harness.sandbox import SANDBOX, TYPE
from integration.harness.spec import Spec


def says(done: Done, *parts: str) -> None:
    assert done.code != 0
    missing = [part for part in parts if part not in done.err]
    assert not missing, done


def test_a_namespace_that_is_gone(ctr: Ctr, name: str) -> None:
    done = ctr.run(name, "true", options=cni.words(["/run/netns/never-was"]))
    says(done, "open network namespace: /run/netns/never-was: No such file", "was the pod's network taken down")


def test_a_file_that_a_namespace_was_bound_to(ctr: Ctr, host: Host, name: str) -> None:
    (host.inside / "run/netns/left-over").touch()
    try:
        done = ctr.run(name, "true", options=cni.words(["/run/netns/left-over"]))
        says(done, "/run/netns/left-over: no network namespace is bound there")
    finally:
        (host.inside / "run/netns/left-over").unlink()


def test_the_hosts_network(ctr: Ctr, name: str) -> None:
    says(ctr.run(name, "true", options=["--net-host"]), "it is the host's network namespace", "--net-host")


def test_the_hosts_network_by_path(ctr: Ctr, host: Host, name: str) -> None:
    done = ctr.run(name, "true", options=cni.words([f"/proc/{host.pid}/ns/net"]))
    says(done, f"join network: /proc/{host.pid}/ns/net: it is the host's network namespace")


def test_an_interface_that_no_vm_can_be_given(ctr: Ctr, host: Host, name: str) -> None:
    with cni.namespace(host, "odd") as space:
        cni.ip(host, "link", "add", "br0", "type", "bridge", netns="odd")
        cni.ip(host, "addr", "add", "10.93.0.2/24", "dev", "br0", netns="odd")
        done = ctr.run(name, "true", options=cni.words([space.path]))
        says(done, "connect network interface: br0: it is of kind bridge", "veth")


@pytest.mark.vm
def test_a_sandbox_whose_interface_has_no_address(
    ctr: Ctr, host: Host, name: str, rootfs_dir: Path, tmp_path: Path
) -> None:
    """What a CNI chain without ipam leaves. Nothing of the pod stays, and `why` says the same as the error."""
    bare = cni.Network("bare", ({"type": "bridge", "bridge": "kt8"},))
    cni.ip(host, "link", "add", "kt8", "type", "bridge")
    try:
        with cni.namespace(host, "bare", bare) as space:
            spec = Spec.default(ctr, rootfs_dir, "true").set("annotations", {TYPE: "sandbox", SANDBOX: name})
            kept = [item for item in spec.content["linux"]["namespaces"] if item["type"] != "network"]
            spec.set("linux.namespaces", [*kept, {"type": "network", "path": str(space.path)}])
            done = spec.run(ctr, name, tmp_path)
            says(done, "read pod network: /run/netns/bare: no interface has an address (eth0)", "ipam")
            assert "tap0_kata" not in cni.ip(host, "link", "show", netns="bare")
    finally:
        cni.ip(host, "link", "delete", "kt8")
    why = host.run([PREFIX / "bin/kata-shimd", "why", name])
    assert b"no interface has an address" in why.stdout, subprocess.list2cmdline(
        [why.stdout.decode(), why.stderr.decode()]
    )
