"""A guest is there whole or not at all, and ``current`` names one that is there."""

import errno
import json

import pytest

from kata_shimd.errors import FailedPrecondition, HostFailed, NotFound, PermissionDenied, ResourceExhausted
from kata_shimd.image.store import Store, os_errors


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "guest")


def publish(store, digest, content=b"k"):
    with store.locked(), store.workspace() as work:
        finished = work / digest
        finished.mkdir()
        (finished / "vmlinuz").write_bytes(content)
        (finished / "manifest.json").write_text(json.dumps({"digest": digest}))
        store.publish(finished, digest)
        store.switch(digest)


def test_publish_makes_a_guest_current_and_leaves_nothing_else(store):
    publish(store, "aaaa")
    assert store.has("aaaa")
    assert store.current() == "aaaa"
    assert (store.directory / "current/vmlinuz").read_bytes() == b"k"
    assert sorted(path.name for path in store.directory.iterdir()) == [".lock", "aaaa", "current"]


def test_publish_replaces_a_guest_of_the_same_digest(store):
    publish(store, "aaaa", b"old")
    publish(store, "aaaa", b"new")
    assert (store.directory / "current/vmlinuz").read_bytes() == b"new"
    assert [guest.digest for guest in store.guests()] == ["aaaa"]


def test_a_build_that_fails_leaves_nothing(store):
    with pytest.raises(RuntimeError), store.locked(), store.workspace() as work:
        (work / "half").mkdir()
        raise RuntimeError
    assert [path.name for path in store.directory.iterdir()] == [".lock"]
    assert store.guests() == []


def test_what_a_killed_builder_left_is_removed_by_the_next(store):
    publish(store, "aaaa")
    (store.directory / ".build-dead").mkdir()
    (store.directory / ".build-dead/rootfs.img").touch()
    publish(store, "bbbb")
    assert sorted(path.name for path in store.directory.iterdir()) == [".lock", "aaaa", "bbbb", "current"]


def test_a_directory_without_a_record_is_no_guest(store):
    publish(store, "aaaa")
    (store.directory / "cccc").mkdir()
    assert not store.has("cccc")
    assert [guest.digest for guest in store.guests()] == ["aaaa"]


def test_get_takes_an_unambiguous_beginning_or_current(store):
    publish(store, "aaaa")
    publish(store, "aabb")
    assert store.get("aab").digest == "aabb"
    assert store.get("current").digest == "aabb"
    with pytest.raises(NotFound, match="2 guests match"):
        store.get("aa")
    with pytest.raises(NotFound, match="no such guest"):
        store.get("x")


def test_remove_keeps_the_current_guest_unless_forced(store):
    publish(store, "aaaa")
    publish(store, "bbbb")
    store.remove("aaaa")
    with pytest.raises(FailedPrecondition, match="it is the current one"):
        store.remove("bbbb")
    store.remove("bbbb", force=True)
    assert store.guests() == []
    assert store.current() is None


def test_a_damaged_record_says_what_to_do(store):
    publish(store, "aaaa")
    (store.directory / "aaaa/manifest.json").write_text("{")
    with pytest.raises(HostFailed, match="build it again with --force"):
        store.guests()


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, ResourceExhausted), (errno.EACCES, PermissionDenied), (errno.EIO, HostFailed)]
)
def test_os_errors_become_ours_by_their_number(number, kind):
    with pytest.raises(kind, match="publish guest: /x: "), os_errors("publish guest", "/y"):
        raise OSError(number, "cause", "/x")
