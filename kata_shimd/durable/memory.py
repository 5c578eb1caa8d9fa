"""Memory files that are mostly history: what is over is given back to the host, and what the host has not is no end of anything."""

import ctypes
import errno
import mmap
import os
import sys
from typing import Final, NoReturn

from kata_shimd.errors import HostFailed

_PUNCH_HOLE_KEEP_SIZE: Final = 0x03
_libc: Final = ctypes.CDLL(None, use_errno=True)


#: What a write to a memory file says when there is no memory, or no more than a limit allows.
SHORT: Final = frozenset({errno.ENOSPC, errno.ENOMEM, errno.EFBIG, errno.EDQUOT})


def leave(error: BaseException) -> NoReturn:
    """End this daemon, for what it has to keep cannot be kept. Nothing of it has been taken, so the next daemon finds it all;
    closing the connection instead would be the death of the shim to whoever is at its other end."""
    print(error, file=sys.stderr, flush=True)
    os._exit(1)


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
