"""Building: the same bytes every time, nothing to do the second time, and failures that say what to do."""

import hashlib
import time
from pathlib import Path

import pytest

from kata_shimd.errors import HostFailed, NotFound
from kata_shimd.image.build import KERNEL, Programs, build_guest
from kata_shimd.image.elf import is_elf
from kata_shimd.image.manifest import default_text
from kata_shimd.image.store import Store


def hashes(directory):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(directory.iterdir())}


def test_two_builds_are_equal_byte_for_byte(guest, programs, cache, tmp_path):
    again = Store(tmp_path / "guest")
    digest = build_guest(default_text(), programs, store=again, cache=cache)
    assert digest == guest.name
    assert hashes(again.directory / digest) == hashes(guest)


def test_record_has_the_hash_of_every_file(guest):
    record = Store(guest.parent).get("current").record
    files = hashes(guest)
    files.pop("manifest.json")
    assert {name: output["sha256"] for name, output in record["outputs"].items()} == files
    assert {"crun", "libc6", "busybox-static"} <= {package["name"] for package in record["inputs"]["packages"]}
    assert (record["modules"]["virtio_blk"], record["modules"]["scsi_mod"]) == ([], ["virtio:d00000008v*"])


def test_a_guest_that_exists_is_not_built_again(guest, programs, tmp_path):
    """Nothing is fetched either: the cache given here is empty and stays so."""
    lines = []
    began = time.monotonic()
    build_guest(default_text(), programs, store=Store(guest.parent), cache=tmp_path / "cache", say=lines.append)
    assert lines[-1] == f"guest {guest.name} exists"
    assert not (tmp_path / "cache").exists()
    assert time.monotonic() - began < 8  # 0.8 s on a quiet machine; a build is far above


def test_the_kernel_starts_without_decompressing_itself(guest):
    assert is_elf((guest / KERNEL).read_bytes()[:64])


def test_an_unknown_package_is_named(programs, cache, tmp_path):
    text = default_text().replace('"crun"', '"crun-of-another-world"')
    with pytest.raises(NotFound, match="find package: crun-of-another-world: apt does not know it; run apt-get update"):
        build_guest(text, programs, store=Store(tmp_path), cache=cache)


def test_an_agent_that_is_not_there_is_named(programs, cache, tmp_path):
    with pytest.raises(NotFound, match=r"read program: /nonexistent: no such file; .* --agent"):
        absent = Programs(Path("/nonexistent"), programs.init, programs.trivial)
        build_guest(default_text(), absent, store=Store(tmp_path), cache=cache)


def test_a_failing_tool_leaves_no_guest(guest, programs, cache, tmp_path, monkeypatch):
    monkeypatch.setattr("kata_shimd.image.rootfs.SQUASHFS", ("-no-such-option",))
    store = Store(tmp_path / "guest")
    with pytest.raises(HostFailed, match=r"make root image: .*mksquashfs exited with 1"):
        build_guest(default_text(), programs, store=store, cache=cache)
    assert [path.name for path in store.directory.iterdir()] == [".lock"]
