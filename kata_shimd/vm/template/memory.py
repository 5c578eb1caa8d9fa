"""Files of guest RAM: sparse, in memory, copied extent by extent. What is a hole, or nothing but zeros, is not copied."""

import errno
import fcntl
import mmap
import os
import zlib
from collections.abc import Iterator
from typing import Final

from kata_shimd.errors import HostFailed

PAGE: Final = mmap.PAGESIZE
_ZEROS: Final = bytes(PAGE)
#: Looked at for zeros as a whole first: most of what is empty is empty by far.
_CHUNK: Final = 64 * PAGE
_EMPTY: Final = bytes(_CHUNK)
_PIECE: Final = 8 << 20


def new(size: int) -> int:
    """A file of guest RAM that has no name and ends with its last user. Its size is for ever, so that QEMU cannot make whoever else
    maps it fall off its end. The caller owns the descriptor.

    :raises HostFailed: no descriptor, or it may not be so large
    """
    fd = os.memfd_create("guest-ram", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
    except OSError as error:
        os.close(fd)
        raise HostFailed("make guest memory", f"{size} bytes", error.strerror or "") from error
    return fd


def extents(fd: int) -> Iterator[tuple[int, int]]:
    """The parts of a file that are no holes: (offset, length)."""
    end = 0
    while True:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, end - start


def copy(source: int, target: int) -> int:
    """Copy the data of ``source`` to the same places of ``target``, an empty file of the same size. Blocks.

    :returns: bytes copied
    :raises HostFailed: no memory is left, or the source is shorter than it says
    """
    copied = 0
    try:
        for start, length in extents(source):
            _copy_extent(source, target, start, length)
            copied += length
    except OSError as error:
        raise HostFailed("copy guest memory", "", error.strerror or "") from error
    return copied


def _copy_extent(source: int, target: int, start: int, length: int) -> None:
    os.lseek(target, start, os.SEEK_SET)
    end = start + length
    while start < end:
        sent = os.sendfile(target, source, start, end - start)
        if sent == 0:
            raise OSError(errno.EIO, "the file ends early")
        start += sent


def checksum(fd: int) -> int:
    """CRC-32 of what a file holds and where: against accidents, for who could write there needs no accident. Blocks."""
    total = 0
    if not os.fstat(fd).st_size:
        return total
    with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as ram, memoryview(ram) as view:
        for start, length in extents(fd):
            total = zlib.crc32(b"%d %d " % (start, length), total)
            for at in range(start, start + length, _PIECE):
                with view[at : min(at + _PIECE, start + length)] as piece:
                    total = zlib.crc32(piece, total)
    return total


def copy_used(source: int, target: int) -> int:
    """Like `copy`, but what is all zeros becomes a hole: slower, and done once for all clones. Blocks.

    :returns: bytes copied
    :raises HostFailed: no room is left
    """
    copied = 0
    try:
        with mmap.mmap(source, 0, prot=mmap.PROT_READ) as ram:
            for start, length in extents(source):
                for run, size in _used(ram, start, start + length):
                    _copy_extent(source, target, run, size)
                    copied += size
    except OSError as error:
        raise HostFailed("copy guest memory", "", error.strerror or "") from error
    return copied


def _used(ram: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Runs of pages that are not all zeros."""
    begun: int | None = None
    for page in _pages(ram, start, end):
        offset, used = page
        if used and begun is None:
            begun = offset
        elif not used and begun is not None:
            yield begun, offset - begun
            begun = None
    if begun is not None:
        yield begun, end - begun


def _pages(ram: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, bool]]:
    """Where a page, or a chunk of empty ones, begins, and whether anything is in it."""
    for chunk in range(start, end, _CHUNK):
        stop = min(chunk + _CHUNK, end)
        if ram[chunk:stop] == _EMPTY[: stop - chunk]:
            yield chunk, False
            continue
        for page in range(chunk, stop, PAGE):
            yield page, ram[page : min(page + PAGE, stop)] != _ZEROS
