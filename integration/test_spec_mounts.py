"""The mounts of an OCI spec, and the terminal's size, hold in the guest."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from integration.harness import shim
from integration.harness.ctr import PATIENCE, Ctr
from integration.harness.host import Host
from integration.harness.sandbox import Sandbox, sandbox, table
from integration.harness.shim import ShimSocket
from integration.harness.spec import Spec
from integration.harness.waiting import eventually


@pytest.fixture(scope="module")
def pod(ctr: Ctr, rootfs_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    with sandbox(ctr, "spec-mounts", rootfs_dir, tmp_path_factory.mktemp("spec")) as made:
        yield made


def mount(spec: Spec, destination: str, kind: str, source: str | Path, *options: str) -> Spec:
    """Add a mount, in the place of one that the spec has there."""
    mounts = [item for item in spec.content["mounts"] if item["destination"] != destination]
    new = {"destination": destination, "type": kind, "source": str(source), "options": list(options)}
    return spec.set("mounts", [*mounts, new])


def bind(spec: Spec, destination: str, source: Path, *options: str) -> Spec:
    return mount(spec, destination, "bind", source, "rbind", *options)


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("destination", ["/scratch", "/dev/shm"])
def test_a_tmpfs_has_its_size_mode_and_flags(pod: Sandbox, destination: str) -> None:
    script = (
        f"stat -c mode=%a {destination}; set -- $(df -k {destination} | tail -n 1); echo size=$2;"
        f"grep ' {destination} ' /proc/self/mountinfo | cut -d' ' -f6 | sed s/^/flags=/;"
        f"head -c 4000000 /dev/zero > {destination}/full 2>&1 || echo full=yes"
    )
    spec = mount(pod.script(script), destination, "tmpfs", "tmpfs", "nosuid", "noexec", "mode=1770", "size=3072k")
    found = table(pod.run(spec).ok().out)
    assert (found["mode"], found["size"], found["full"]) == ("1770", "3072", "yes")
    assert {"nosuid", "noexec"} <= set(found["flags"].split(","))


# --- the host's files ------------------------------------------------------------------------------------------------


def test_a_directory_of_the_host_both_ways(pod: Sandbox) -> None:
    directory = pod.directory_of("both")
    (directory / "in").write_text("from the host")
    done = pod.run(bind(pod.script("cat /data/in; echo from the guest > /data/out"), "/data", directory, "rw"))
    assert done.ok().out == "from the host"
    assert (directory / "out").read_text() == "from the guest\n"


def test_a_read_only_directory_of_the_host(pod: Sandbox) -> None:
    directory = pod.directory_of("readonly")
    (directory / "in").write_text("from the host")
    script = "cat /data/in; (: > /data/out) 2>&1; (: >> /data/in) 2>&1; mount -o remount,rw /data 2>&1"
    refused = pod.run(bind(pod.script(script), "/data", directory, "ro")).out
    assert refused.startswith("from the host") and refused.count("Read-only file system") == 2
    assert [path.name for path in directory.iterdir()] == ["in"]


@pytest.mark.parametrize(("options", "refusals"), [(("ro",), 1), (("ro", "rro"), 2)], ids=["the top", "throughout"])
def test_what_is_mounted_below_a_read_only_directory(
    pod: Sandbox, host: Host, options: tuple[str, ...], refusals: int
) -> None:
    """It is as writable as on the host, unless the volume is read-only recursively."""
    directory = pod.directory_of("below")
    (directory / "in").mkdir()
    assert host.run(["mount", "-t", "tmpfs", "tmpfs", directory / "in"]).returncode == 0
    try:
        script = "(: > /data/out) 2>&1; (: > /data/in/out) 2>&1; ls /data/in"
        done = pod.run(bind(pod.script(script), "/data", directory, *options)).ok().out
        kept = host.run(["ls", directory / "in"]).stdout.decode().split()
    finally:
        host.run(["umount", directory / "in"])
    assert done.count("Read-only file system") == refusals, done
    assert kept == (["out"] if refusals == 1 else [])
    assert [path.name for path in directory.iterdir()] == ["in"]


@pytest.mark.parametrize("mode", ["rw", "ro"])
def test_a_file_of_the_host(pod: Sandbox, mode: str) -> None:
    """Over one that the image has, and at a place where there was nothing."""
    file = pod.directory_of("file") / "passwd"
    file.write_text("from the host\n")
    spec = pod.script("cat /etc/passwd /run/fresh/file; (echo more >> /run/fresh/file) 2>&1; echo done")
    spec = bind(bind(spec, "/etc/passwd", file, "ro"), "/run/fresh/file", file, mode)
    done = pod.run(spec).ok().out
    assert done.startswith("from the host\nfrom the host")
    assert ("Read-only file system" in done) == (mode == "ro")
    assert file.read_text() == "from the host\n" + ("more\n" if mode == "rw" else "")


def test_what_changes_on_the_host_is_seen(pod: Sandbox) -> None:
    """As the kubelet renews a ConfigMap: a new directory, and a link that is replaced."""
    directory = pod.directory_of("config")
    renew(directory, "1", "before")
    with pod.running(bind(pod.spec("sleep", "86400"), "/config", directory, "ro")) as container:

        def seen() -> str:
            return pod.ctr.exec(container, pod.fresh("e"), "cat", "/config/key").out

        assert seen() == "before"
        renew(directory, "2", "after")
        eventually("the new content", lambda: seen() == "after", within=PATIENCE)


def renew(directory: Path, version: str, content: str) -> None:
    (directory / version).mkdir()
    (directory / version / "key").write_text(content)
    (directory / "next").symlink_to(version)
    (directory / "next").rename(directory / "..data")
    if not (directory / "key").is_symlink():
        (directory / "key").symlink_to("..data/key")


def test_a_source_that_does_not_exist_is_named(pod: Sandbox) -> None:
    done = pod.run(bind(pod.spec("true"), "/data", Path("/no/such/source")))
    assert done.code != 0 and "/no/such/source" in done.err


def test_mounts_lie_in_the_order_of_the_spec(pod: Sandbox) -> None:
    directory = pod.directory_of("order")
    (directory / "in").write_text("below")
    spec = mount(pod.script("cat /top/data/in; ls /top"), "/top", "tmpfs", "tmpfs")
    assert pod.run(bind(spec, "/top/data", directory, "ro")).ok().out == "belowdata"


@pytest.mark.parametrize(("option", "tag"), [("rprivate", ""), ("rslave", ""), ("rshared", "shared:")])
def test_propagation_of_a_mount(pod: Sandbox, option: str, tag: str) -> None:
    """What the container mounts below spreads from a shared one alone, where the root is shared as CRI then asks for it."""
    spec = bind(pod.script("grep ' /data ' /proc/self/mountinfo"), "/data", pod.directory_of("spread"), option)
    spec.set("linux.rootfsPropagation", option)
    tags = pod.run(spec).ok().out.partition(" - ")[0]
    assert ("shared:" in tags) == bool(tag), tags


def test_a_relative_destination_is_refused(pod: Sandbox) -> None:
    done = pod.run(mount(pod.spec("true"), "data", "tmpfs", "tmpfs"))
    assert done.code != 0 and "not absolute" in done.err


# --- the terminal ----------------------------------------------------------------------------------------------------

SIZE = {"height": 33, "width": 111}


@pytest.mark.vm
def test_the_terminal_of_an_exec_has_its_size_from_the_start(pod: Sandbox) -> None:
    """Without any resize."""
    socket, exec_id = ShimSocket.of(pod.ctr, pod.id), pod.fresh("e")
    output = pod.directory / exec_id
    process: dict[str, Any] = {"terminal": True, "consoleSize": SIZE}
    spec = shim.json_any(shim.PROCESS, shim.process("stty", "size", **process))
    socket.call("Exec", id=pod.id, exec_id=exec_id, terminal=True, stdout=f"file://{output}", spec=spec)
    try:
        socket.call("Start", id=pod.id, exec_id=exec_id)
        assert socket.call("Wait", id=pod.id, exec_id=exec_id).exit_status == 0
    finally:
        socket.call("Delete", id=pod.id, exec_id=exec_id)
    assert output.read_text().split() == ["33", "111"]
