"""Network namespaces: found in the spec, made when the spec wants a new one, entered by threads made for it.

Must never happen: the daemon's main thread, or one of a pool, in another namespace than the daemon's. A thread that has entered
one does its work and ends.
"""

import asyncio
import ctypes
import errno
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

from kata_shimd.errors import HostFailed, InvalidArgument, Unimplemented
from kata_shimd.host import mounts
from kata_shimd.ledger import BOOT, Kind, Ledger

T = TypeVar("T")

#: The file below POD that a namespace of our own is bound to.
NAME: Final = "netns"
#: Of this process, and of the host as far as we can see it.
_OURS: Final = (Path("/proc/self/ns/net"), Path("/proc/1/ns/net"))

_CLONE_NEWNET: Final = 0x4000_0000
#: linux/nsfs.h
_NS_GET_NSTYPE: Final = 0xB703
#: linux/sockios.h, linux/if.h
_SIOCGIFFLAGS: Final = 0x8913
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 1
_IFREQ: Final = struct.Struct("16sh22x")

_libc: Final = ctypes.CDLL(None, use_errno=True)


class Namespace:
    """A network namespace that lives at least as long as this object, whatever becomes of its path."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path, self._fd = path, fd

    def fileno(self) -> int:
        return self._fd

    @property
    def pinned(self) -> Path:
        """A path by which another process of ours enters this very namespace."""
        return Path(f"/proc/{os.getpid()}/fd/{self._fd}")

    def close(self) -> None:
        os.close(self._fd)

    async def run(self, work: Callable[[], T]) -> T:
        """Run ``work`` in a thread of its own inside the namespace; what it returns or raises.

        A caller that is cancelled leaves the thread to end by itself: it takes milliseconds, and what it makes is on record.

        :raises HostFailed: the namespace cannot be entered
        """
        return await _in_thread(lambda: _entered(self._fd, self.path, work))


def find(path: str) -> Namespace:
    """The namespace that the spec names.

    :raises InvalidArgument: there is none at ``path``
    :raises Unimplemented: it is the host's
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        hint = "was the pod's network taken down, or never set up?"
        raise InvalidArgument("open network namespace", path, error.strerror or "", hint=hint) from error
    try:
        _check(path, fd)
    except BaseException:
        os.close(fd)
        raise
    return Namespace(Path(os.path.abspath(path)), fd)  # noqa: PTH100 - links stay as they are, `undo` judges them


def _check(path: str, fd: int) -> None:
    try:
        kind = fcntl.ioctl(fd, _NS_GET_NSTYPE)
    except OSError:
        kind = 0
    if kind != _CLONE_NEWNET:
        hint = "was the pod's network taken down?"
        raise InvalidArgument("open network namespace", path, "no network namespace is bound there", hint=hint)
    if any(os.path.samestat(os.fstat(fd), ours) for ours in _ours()):
        raise host_network(path)


def _ours() -> Iterator[os.stat_result]:
    """Init's may not be ours to see, in a container."""
    for path in _OURS:
        with suppress(OSError):
            yield path.stat()


def host_network(obj: str) -> Unimplemented:
    """The refusal of a pod that wants to be in the host's network."""
    return Unimplemented(
        "join network", obj, "it is the host's network namespace, which a virtual machine cannot be in",
        hint="run it without host network (hostNetwork, --net-host)",
    )  # fmt: skip


async def create(ledger: Ledger) -> Namespace:
    """A new namespace with a loopback that is up, bound to a file in the pod's directory.

    :raises HostFailed: it could not be made; the ledger has what was
    """
    path = ledger.pod_dir / NAME
    ledger.plan(Kind.NETNS, scope=BOOT, path=str(path))
    path.touch(mode=0o600)
    namespace = Namespace(path, await _in_thread(lambda: _make(path)))
    mounts.pin(namespace.fileno(), path)
    return namespace


def _make(path: Path) -> int:
    if _libc.unshare(_CLONE_NEWNET) != 0:
        raise _failed("make network namespace", path)
    set_up("lo")
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def set_up(name: str) -> None:
    """Set a link of the thread's namespace up; a system call, for a namespace that needs no more than this."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = _IFREQ.pack(name.encode(), 0)
        _, flags = _IFREQ.unpack(fcntl.ioctl(any_socket, _SIOCGIFFLAGS, request))
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, _IFREQ.pack(name.encode(), flags | _IFF_UP))


def _entered(fd: int, path: Path, work: Callable[[], T]) -> T:
    if _libc.setns(fd, _CLONE_NEWNET) != 0:
        raise _failed("enter network namespace", path)
    return work()


async def _in_thread(work: Callable[[], T]) -> T:
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]

    def tell(result: T | None, error: BaseException | None) -> None:
        with suppress(RuntimeError):  # the loop has ended, and with it everyone who could ask
            loop.call_soon_threadsafe(settle, result, error)

    def body() -> None:
        try:
            result = work()
        except Exception as error:
            tell(None, error)
        else:
            tell(result, None)

    threading.Thread(target=body, name="netns", daemon=True).start()
    return await done


def _failed(step: str, path: Path) -> HostFailed:
    number = ctypes.get_errno()
    hint = "the daemon needs CAP_SYS_ADMIN" if number == errno.EPERM else ""
    return HostFailed(step, str(path), os.strerror(number), hint=hint)
