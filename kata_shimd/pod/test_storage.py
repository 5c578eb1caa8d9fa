"""The storage plan: what is shared, and where the guest finds it."""

import errno
import os
from pathlib import Path

import pytest

from kata_shimd.errors import InvalidArgument
from kata_shimd.pod import storage
from kata_shimd.pod.values import Mount

OVERLAY = (Mount("overlay", "overlay", ("lowerdir=/a",)),)
SHARED = "/run/kata-containers/shared/containers/c1"


def plan(tmp_path, *mounts, rootfs=OVERLAY, root=None):
    return storage.plan("c1", tmp_path, {"mounts": list(mounts), "root": root}, rootfs)


def test_rootfs_mounts_of_containerd_are_used_as_they_are(tmp_path):
    assert plan(tmp_path).rootfs.mounts == OVERLAY


@pytest.mark.parametrize("absolute", [True, False])
def test_without_mounts_the_root_path_is_bound(tmp_path, absolute):
    (tmp_path / "fs").mkdir()
    path = str(tmp_path / "fs") if absolute else "fs"
    (mount,) = plan(tmp_path, rootfs=(), root={"path": path}).rootfs.mounts
    assert (mount.type, mount.source) == ("bind", str(tmp_path / "fs"))


def test_missing_rootfs_is_refused(tmp_path):
    with pytest.raises(InvalidArgument, match="no such directory"):
        plan(tmp_path, rootfs=())


def test_rootfs_that_may_not_be_looked_at_is_refused(tmp_path, monkeypatch):
    """Found by fuzzing: the namespace of a process of somebody else's, which even root may be denied."""

    def denied(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(storage.Path, "is_dir", denied)
    with pytest.raises(InvalidArgument, match="/proc/1/ns/pid: Permission denied"):
        plan(tmp_path, rootfs=(), root={"path": "/proc/1/ns/pid"})


def test_bind_mounts_are_shared_and_their_source_becomes_the_guests(tmp_path):
    (tmp_path / "hosts").touch()
    bind = {"type": "bind", "destination": "/etc/hosts", "source": str(tmp_path / "hosts"), "options": ["rbind", "ro"]}
    made = plan(tmp_path, bind)
    assert made.shares == (storage.Share(tmp_path / "hosts", "0-hosts", readonly=True),)
    assert made.mounts[0]["source"] == f"{SHARED}/mounts/0-hosts"
    assert made.mounts[0]["options"] == ["rbind", "ro"]


def test_two_mounts_of_one_name_do_not_collide(tmp_path):
    (tmp_path / "x").mkdir()
    bind = {"type": "bind", "source": str(tmp_path / "x"), "options": ["bind"]}
    made = plan(tmp_path, bind | {"destination": "/a"}, bind | {"destination": "/b"})
    assert [share.name for share in made.shares] == ["0-x", "1-x"]


def test_symlinks_are_resolved_on_the_host(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    made = plan(tmp_path, {"type": "bind", "destination": "/a", "source": str(tmp_path / "link"), "options": []})
    assert made.shares[0].source == tmp_path / "real"


@pytest.mark.parametrize(
    "mount",
    [
        {"type": "proc", "destination": "/proc", "source": "proc"},
        {"type": "tmpfs", "destination": "/run", "source": "tmpfs", "options": ["nosuid"]},
        {"type": "bind", "destination": "/sys/fs/cgroup", "source": "/sys/fs/cgroup", "options": ["rbind"]},
        {"type": "bind", "destination": "/dev/null", "source": "/dev/null", "options": ["bind"]},
    ],
    ids=lambda mount: mount["destination"],
)
def test_what_the_guest_makes_itself_is_left_to_it(tmp_path, mount):
    made = plan(tmp_path, mount)
    assert made.shares == () and made.mounts == (mount,)


def test_pod_shm_is_the_guests(tmp_path):
    made = plan(tmp_path, {"type": "bind", "destination": "/dev/shm", "source": "/run/x/shm", "options": ["rw"]})
    assert made.mounts[0]["source"] == "/run/kata-containers/sandbox/shm"


def test_a_loop_of_links_is_refused(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    mount = {"destination": "/x", "type": "bind", "source": str(tmp_path / "loop")}
    with pytest.raises(InvalidArgument, match="loop"):
        storage.plan("c1", tmp_path, {"mounts": [mount]}, (Mount("bind", "/"),))


def test_missing_source_is_named(tmp_path):
    with pytest.raises(InvalidArgument, match=r"/no/such"):
        plan(tmp_path, {"type": "bind", "destination": "/a", "source": "/no/such", "options": ["bind"]})


def test_relative_destination_is_refused(tmp_path):
    with pytest.raises(InvalidArgument, match="not absolute"):
        plan(tmp_path, {"type": "bind", "destination": "a", "source": "/tmp"})


def test_shared_memory_has_the_size_that_the_host_gave_the_pod():
    found = os.statvfs("/dev/shm")
    made = storage.shm({"mounts": [{"destination": "/dev/shm", "source": "/dev/shm", "type": "bind"}]})
    assert f"size={found.f_blocks * found.f_frsize}" in made.options
    assert (made.driver, made.mount_point) == ("ephemeral", "/run/kata-containers/sandbox/shm")


@pytest.mark.parametrize("mounts", [[], [{"destination": "/dev/shm", "source": "shm", "type": "tmpfs"}], [{}]])
def test_shared_memory_without_a_mount_of_the_hosts(mounts):
    """A directory that is no mount would show the size of the whole disk."""
    assert f"size={64 << 20}" in storage.shm({"mounts": mounts}).options
    assert "mode=1777" in storage.shm({"mounts": [{"destination": "/dev/shm", "source": "/usr"}]}).options


@pytest.mark.parametrize(("option", "readonly"), [("ro", True), ("rro", True), ("rw", False)])
def test_a_share_is_read_only_in_either_way(tmp_path, option, readonly):
    bind = {"type": "bind", "destination": "/data", "source": str(tmp_path), "options": ["rbind", option]}
    (share,) = plan(tmp_path, bind).shares
    assert share.readonly is readonly


@pytest.mark.parametrize(
    ("options", "source", "left"),
    [
        (["rbind", "ro"], "/", ["rbind"]),
        (["rbind", "ro"], "empty", ["rbind", "ro"]),
        (["bind", "ro"], "/", ["bind", "ro"]),
        (["rbind", "ro", "rro"], "/", ["rbind", "ro", "rro"]),
    ],
    ids=["mounts below", "none below", "not shown", "throughout"],
)
def test_what_is_mounted_below_a_read_only_volume_is_as_writable_as_on_the_host(tmp_path, options, source, left):
    """The guest sees one file system, so read-only there would hold for all of it; the host's mount of the share refuses."""
    (tmp_path / "empty").mkdir()
    bind = {"type": "bind", "destination": "/data", "source": str(tmp_path / source), "options": options}
    made = plan(tmp_path, bind)
    assert made.mounts[0]["options"] == left
    assert (made.shares[0].readonly, made.shares[0].throughout) == (True, "rro" in options)


def test_mount_points_with_blanks_are_known(tmp_path, monkeypatch):
    table = "22 1 0:21 / /a\\040b/c rw - tmpfs none rw\n"
    monkeypatch.setattr(storage.Path, "read_text", lambda self, **how: table)
    assert storage._has_mounts_below(Path("/a b"))
    assert not storage._has_mounts_below(Path("/a b/c"))
    assert not storage._has_mounts_below(Path("/a"))
