"""The kernel of a distribution package, as QEMU gets it.

A ``bzImage`` decompresses itself inside the guest, which costs most of a second where instructions are emulated. The ELF
kernel inside it starts directly through the PVH entry that QEMU finds in its notes (the kernel's
``Documentation/arch/x86/boot.rst``; Xen's ``docs/misc/pvh.pandoc``), so it is unpacked once, here.
"""

import bz2
import gzip
import lzma
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kata_shimd.errors import HostFailed, NotFound
from kata_shimd.image.elf import is_elf
from kata_shimd.image.tool import run

BOOT_MAGIC_AT, BOOT_MAGIC = 0x202, b"HdrS"
SETUP_SECTORS_AT = 0x1F1
PAYLOAD_AT = struct.Struct("<II")
PAYLOAD_OFFSET_AT = 0x248
SECTOR = 512
#: After the compressed bytes stands the unpacked size, 4 bytes, little endian (scripts/Makefile.lib, ``size_append``).
SIZE = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Kernel:
    """``release`` is ``uname -r``; ``image`` the packaged file, ``modules`` its ``/lib/modules/RELEASE``."""

    release: str
    image: Path
    modules: Path


def find_kernel(tree: Path) -> Kernel:
    """The one kernel of an unpacked package.

    Raises NotFound when the package is laid out otherwise.
    """
    images = sorted(tree.glob("boot/vmlinuz-*"))
    if len(images) != 1:
        raise NotFound("find the kernel", str(tree / "boot"), f"{len(images)} files named vmlinuz-*, expected one")
    release = images[0].name.removeprefix("vmlinuz-")
    for modules in (tree / "usr/lib/modules" / release, tree / "lib/modules" / release):
        if modules.is_dir():
            return Kernel(release, images[0], modules)
    raise NotFound("find the kernel's modules", str(tree), f"no lib/modules/{release}")


def unpack(image: bytes, name: str) -> bytes:
    """The ELF kernel inside a bzImage.

    Raises HostFailed when it is none, or compressed in a way nobody here can undo.
    """
    payload, size = _payload(image, name)
    for magic, decompress in _DECOMPRESSORS:
        if payload.startswith(magic):
            kernel = decompress(payload)
            break
    else:
        raise HostFailed("unpack the kernel", name, f"unknown compression (starts with {payload[:6].hex()})")
    if len(kernel) != size or not is_elf(kernel):
        raise HostFailed("unpack the kernel", name, f"{len(kernel)} bytes of no ELF file, expected {size}")
    return kernel


def _payload(image: bytes, name: str) -> tuple[bytes, int]:
    """The compressed kernel and its unpacked size (boot protocol 2.08: payload_offset counts from the end of the setup)."""
    if image[BOOT_MAGIC_AT : BOOT_MAGIC_AT + len(BOOT_MAGIC)] != BOOT_MAGIC:
        raise HostFailed("unpack the kernel", name, "not a bzImage")
    setup = ((image[SETUP_SECTORS_AT] or 4) + 1) * SECTOR
    offset, length = PAYLOAD_AT.unpack_from(image, PAYLOAD_OFFSET_AT)
    payload = image[setup + offset : setup + offset + length]
    if len(payload) != length or length < SIZE.size:
        raise HostFailed("unpack the kernel", name, "cut short")
    return payload[: -SIZE.size], SIZE.unpack(payload[-SIZE.size :])[0]


_DECOMPRESSORS: tuple[tuple[bytes, Callable[[bytes], bytes]], ...] = (
    (b"\x02\x21\x4c\x18", lambda data: run("decompress", "kernel", ["lz4", "-dc"], data=data)),
    (b"\x28\xb5\x2f\xfd", lambda data: run("decompress", "kernel", ["zstd", "-dc"], data=data)),
    (b"\x1f\x8b", gzip.decompress),
    (b"\xfd7zXZ\0", lzma.decompress),
    (b"\x5d\0\0", lzma.decompress),
    (b"BZh", bz2.decompress),
)
