"""Module dependencies, order, and the index files, on a tree of small ELF files."""

from pathlib import PurePosixPath

import pytest

from kata_shimd.errors import NotFound
from kata_shimd.image.elf_testing import module
from kata_shimd.image.modules import ModuleTree, alias_lines, dep_lines, load_order

MODULES = {
    "kernel/drivers/virtio/virtio.ko": b"",
    "kernel/drivers/virtio/virtio_ring.ko": b"depends=virtio\0",
    "kernel/drivers/virtio/virtio_pci.ko": b"alias=pci:v00001AF4*\0depends=virtio_ring,virtio,virtio-legacy\0",
    "kernel/drivers/virtio/virtio-legacy.ko": b"depends=\0",
    "kernel/fs/xfs/xfs.ko": b"alias=fs-xfs\0depends=libcrc32c,ext4\0",
    "kernel/lib/libcrc32c.ko": b"license=GPL\0",
}


@pytest.fixture
def tree(tmp_path):
    for path, modinfo in MODULES.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(module(modinfo))
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
