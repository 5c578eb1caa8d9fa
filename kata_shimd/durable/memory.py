"""Memory files that are mostly history: what is over is given back to the host."""

import ctypes
import mmap
import os
from typing import Final

from kata_shimd.errors import HostFailed

_PUNCH_HOLE_KEEP_SIZE: Final = 0x03
_libc: Final = ctypes.CDLL(None, use_errno=True)


def new(head: int) -> int:
    """An empty memory file with a page to map."""
    fd = os.memfd_create("stream", os.MFD_CLOEXEC)
    os.ftruncate(fd, head)
    return fd


def punch(fd: int, begin: int, end: int) -> None:
    """Let go of [begin, end), whole pages only: a part of a page would be overwritten in place, and a socket or pipe may still
    refer to it.

    :raises HostFailed: the kernel would not
    """
    end -= end % mmap.PAGESIZE
    if end <= begin:
        return
    if _libc.fallocate(fd, _PUNCH_HOLE_KEEP_SIZE, ctypes.c_longlong(begin), ctypes.c_longlong(end - begin)) != 0:
        raise HostFailed("give memory back", f"fd {fd}", os.strerror(ctypes.get_errno()))
