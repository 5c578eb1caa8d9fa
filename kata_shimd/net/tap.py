"""Open ends of taps: file descriptors for QEMU, opened by a thread inside the pod's network namespace.

A tap made here is not persistent: it goes with the last of its descriptors, whoever holds it.
"""

import ctypes
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from kata_shimd.errors import HostFailed

TUN: Final = Path("/dev/net/tun")
VHOST: Final = Path("/dev/vhost-net")

#: linux/if_tun.h
_TUNSETIFF: Final = 0x400454CA
_IFF_TAP: Final = 0x0002
_IFF_MULTI_QUEUE: Final = 0x0100
_IFF_NO_PI: Final = 0x1000
_IFF_VNET_HDR: Final = 0x4000
_IFREQ: Final = struct.Struct("16sH22x")

_CLONE_NEWNS: Final = 0x2_0000
_MS_REC_PRIVATE: Final = 0x4000 | 0x4_0000
_SYS: Final = Path("/sys")
_libc: Final = ctypes.CDLL(None, use_errno=True)

_HINTS: Final = {
    errno.ENOENT: "load the module tun",
    errno.EBUSY: "does another process use it?",
    errno.EINVAL: "was it made with other flags?",
}


def open_tap(name: str, queues: int, *, multi_queue: bool) -> tuple[int, ...]:
    """Open ``queues`` queues of the tap ``name``, which is made if there is none.

    :raises HostFailed: no tun device, or the tap is somebody's
    """
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR | (_IFF_MULTI_QUEUE if multi_queue else 0)

    def queue() -> int:
        fd = os.open(TUN, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, _TUNSETIFF, _IFREQ.pack(name.encode(), flags))
        except OSError:
            os.close(fd)
            raise
        return fd

    return _several(queue, queues, "open tap", name)


def open_vhost(queues: int) -> tuple[int, ...]:
    """vhost-net for as many queues; empty when the host has none."""
    if not VHOST.exists():
        return ()
    return _several(lambda: os.open(VHOST, os.O_RDWR | os.O_CLOEXEC), queues, "open vhost-net", str(VHOST))


def open_macvtap(name: str, index: int, queues: int) -> tuple[int, ...]:
    """Open queues of a macvtap of the thread's network namespace.

    ``/dev/tap<index>`` may be another namespace's, for an index means something only in its own. The true device number is
    in that namespace's own sysfs, which is mounted where nobody else sees it: the thread must be one that ends afterwards.

    :raises HostFailed: it is no macvtap, or cannot be opened
    """
    _private_mounts()
    _mount("sysfs", name)
    try:
        number = (_SYS / "class/net" / name / f"tap{index}" / "dev").read_text()
    except OSError as error:
        raise HostFailed("find macvtap device", name, error.strerror or "") from error
    _mount("tmpfs", name)
    node = _SYS / "tap"
    os.mknod(node, stat.S_IFCHR | 0o600, os.makedev(*map(int, number.split(":"))))
    return _several(lambda: os.open(node, os.O_RDWR | os.O_CLOEXEC), queues, "open macvtap", name)


def _private_mounts() -> None:
    if _libc.unshare(_CLONE_NEWNS) != 0 or _libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REC_PRIVATE), None) != 0:
        raise HostFailed("unshare mounts", "a thread's", os.strerror(ctypes.get_errno()))


def _mount(kind: str, obj: str) -> None:
    if _libc.mount(kind.encode(), os.fsencode(_SYS), kind.encode(), ctypes.c_ulong(0), None) != 0:
        raise HostFailed(f"mount {kind}", obj, os.strerror(ctypes.get_errno()))


def _several(queue: Callable[[], int], queues: int, step: str, obj: str) -> tuple[int, ...]:
    """All of them or none."""
    with ExitStack() as opened:
        fds = []
        for _ in range(queues):
            try:
                fds.append(queue())
            except OSError as error:
                raise HostFailed(step, obj, error.strerror or "", hint=_HINTS.get(error.errno or 0, "")) from error
            opened.callback(os.close, fds[-1])
        opened.pop_all()
        return tuple(fds)
