"""Module dependencies, order, and the index files, on a tree of small ELF files."""

import gzip
import lzma
from pathlib import PurePosixPath

import pytest

from kata_shimd.errors import NotFound
from kata_shimd.image.elf_testing import module
from kata_shimd.image.modules import ModuleTree, alias_lines, boot_lines, dep_lines, load_order, unsigned

MODULES = {
    "kernel/drivers/virtio/virtio.ko": b"",
    "kernel/drivers/virtio/virtio_ring.ko": b"depends=virtio\0",
    "kernel/drivers/virtio/virtio_pci.ko": b"alias=pci:v00001AF4*\0depends=virtio_ring,virtio,virtio-legacy\0",
    "kernel/drivers/virtio/virtio-legacy.ko": b"depends=\0",
    "kernel/drivers/scsi/scsi_mod.ko": b"",
    "kernel/drivers/scsi/sd_mod.ko": b"alias=scsi:t-0x00*\0depends=scsi_mod\0",
    "kernel/drivers/scsi/virtio_scsi.ko": b"alias=virtio:d00000008v*\0depends=virtio_ring,scsi_mod\0",
    "kernel/fs/xfs/xfs.ko": b"alias=fs-xfs\0depends=libcrc32c,ext4\0",
    "kernel/lib/libcrc32c.ko": b"license=GPL\0",
}


@pytest.fixture(params=["", ".xz", ".gz"])
def tree(request, tmp_path):
    """A kernel package's modules, as Debian 12 (plain), 13 (xz) and others have them."""
    compress = {"": bytes, ".xz": lzma.compress, ".gz": gzip.compress}[request.param]
    for path, modinfo in MODULES.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{path}{request.param}").write_bytes(compress(module(modinfo)))
    (tmp_path / "modules.builtin").write_text("kernel/fs/ext4/ext4.ko\n")
    return ModuleTree(tmp_path)


def test_load_order_puts_dependencies_first_and_each_once(tree):
    names = [it.name for it in load_order(["virtio_pci", "virtio_ring"], tree.read)]
    assert names == ["virtio", "virtio_ring", "virtio_legacy", "virtio_pci"]


def test_load_order_keeps_the_order_asked_for(tree):
    assert [it.name for it in load_order(["libcrc32c", "virtio"], tree.read)] == ["libcrc32c", "virtio"]


def test_a_built_in_module_needs_no_loading(tree):
    assert tree.read("ext4") is None
    assert [it.name for it in load_order(["xfs", "ext4"], tree.read)] == ["libcrc32c", "xfs"]


def test_a_module_that_is_not_there_is_named(tree):
    with pytest.raises(NotFound, match="find kernel module: ext5"):
        load_order(["ext5"], tree.read)


def test_patterns_choose_modules_below_a_directory(tree):
    assert tree.matching(["kernel/fs/*", "kernel/lib/libcrc*"]) == ["libcrc32c", "xfs"]


def test_a_pattern_that_matches_nothing_is_an_error(tree):
    with pytest.raises(NotFound, match="kernel/fs/btrfs"):
        tree.matching(["kernel/fs/*", "kernel/fs/btrfs/*"])


def test_index_lists_what_to_load_first_last(tree):
    lines = list(dep_lines(load_order(["virtio_pci"], tree.read), tree.read))
    base = "kernel/drivers/virtio"
    assert lines[-1] == f"{base}/virtio_pci.ko: {base}/virtio-legacy.ko {base}/virtio_ring.ko {base}/virtio.ko\n"
    assert lines[0] == f"{base}/virtio.ko:\n"


def test_index_of_aliases(tree):
    xfs = tree.read("xfs")
    assert xfs.path == PurePosixPath("kernel/fs/xfs/xfs.ko")
    assert list(alias_lines([xfs])) == ["alias fs-xfs xfs\n"]


def test_data_is_the_uncompressed_module(tree):
    assert tree.data(tree.read("xfs")) == module(MODULES["kernel/fs/xfs/xfs.ko"])


def test_a_driver_and_what_it_needs_wait_for_its_device(tree):
    lines = boot_lines(["virtio_ring"], {"virtio_scsi": ["sd_mod"]}, tree.read)
    assert [(it.name, patterns) for it, patterns in lines.items()] == [
        ("virtio", ()),
        ("virtio_ring", ()),
        ("scsi_mod", ("virtio:d00000008v*",)),
        ("virtio_scsi", ("virtio:d00000008v*",)),
        ("sd_mod", ("virtio:d00000008v*",)),
    ]


def test_what_two_drivers_need_waits_for_either_device(tree):
    lines = boot_lines([], {"virtio_scsi": [], "virtio_pci": []}, tree.read)
    assert {it.name: patterns for it, patterns in lines.items()}["virtio"] == ("virtio:d00000008v*", "pci:v00001AF4*")


def test_signature_is_taken_off():
    body = module(b"depends=\0")
    signature = b"s" * 300
    signed = body + signature + bytes(8) + len(signature).to_bytes(4, "big") + b"~Module signature appended~\n"
    assert unsigned(signed) == body
    assert unsigned(body) == body
