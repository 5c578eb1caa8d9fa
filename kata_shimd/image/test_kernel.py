"""bzImage: the header fields of the boot protocol, and each way a distribution compresses."""

import bz2
import gzip
import lzma
import struct

import pytest

from kata_shimd.errors import HostFailed, NotFound
from kata_shimd.image.elf_testing import program
from kata_shimd.image.kernel import find_kernel, unpack

KERNEL = program("", [])
SIZE = len(KERNEL)


def bzimage(compressed, size=SIZE, setup_sectors=2):
    payload = compressed + struct.pack("<I", size)
    setup = bytearray((setup_sectors + 1) * 512)
    setup[0x1F1] = setup_sectors
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", setup, 0x248, 0x40, len(payload))
    return bytes(setup) + bytes(0x40) + payload + b"tail"


@pytest.mark.parametrize(
    "compress", [gzip.compress, lzma.compress, bz2.compress, lambda data: lzma.compress(data, lzma.FORMAT_ALONE)]
)
def test_unpack_undoes_the_compression(compress):
    assert unpack(bzimage(compress(KERNEL)), "vmlinuz") == KERNEL


def test_unpack_counts_the_payload_from_the_end_of_the_setup():
    assert unpack(bzimage(gzip.compress(KERNEL), setup_sectors=39), "vmlinuz") == KERNEL


@pytest.mark.parametrize(
    ("image", "cause"),
    [
        (b"MZ" + bytes(2000), "not a bzImage"),
        (bzimage(b"\x99 unheard of"), "unknown compression"),
        (bzimage(gzip.compress(KERNEL))[:-60], "cut short"),
        (bzimage(gzip.compress(KERNEL), size=SIZE + 1), "expected"),
        (bzimage(gzip.compress(b"no ELF"), size=6), "no ELF file"),
    ],
)
def test_unpack_refuses(image, cause):
    with pytest.raises(HostFailed, match=cause):
        unpack(image, "vmlinuz")


@pytest.mark.parametrize("lib", ["lib/modules", "usr/lib/modules"])
def test_find_kernel_in_either_layout(tmp_path, lib):
    (tmp_path / "boot").mkdir()
    (tmp_path / "boot/vmlinuz-6.1.0-56-cloud-amd64").touch()
    (tmp_path / lib / "6.1.0-56-cloud-amd64").mkdir(parents=True)
    found = find_kernel(tmp_path)
    assert (found.release, found.modules) == ("6.1.0-56-cloud-amd64", tmp_path / lib / "6.1.0-56-cloud-amd64")


def test_find_kernel_refuses_a_package_without_one(tmp_path):
    with pytest.raises(NotFound, match="0 files named"):
        find_kernel(tmp_path)
