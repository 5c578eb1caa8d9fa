"""Tells that something has changed in a network namespace: netlink's multicast groups, heard on one socket.

What has changed is not read from the messages: whoever is told looks again. So a message that was lost is no harm, and nothing
is parsed that a full buffer may have cut.
"""

import asyncio
import errno
import socket
from typing import Final

from kata_shimd.net.namespace import Namespace

#: linux/rtnetlink.h: links, addresses and routes of both families.
_GROUPS: Final = 0x1 | 0x10 | 0x40 | 0x100 | 0x400


class Changes:
    """`wait` returns when something has happened since it last did."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._happened = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock, self._heard)

    @classmethod
    async def of(cls, namespace: Namespace) -> "Changes":
        """A socket belongs for ever to the namespace in which it was opened."""
        return cls(await namespace.run(_open))

    async def wait(self) -> None:
        await self._happened.wait()
        self._happened.clear()

    def suspect(self) -> None:
        """Something may have happened while nobody listened."""
        self._happened.set()

    def close(self) -> None:
        self._loop.remove_reader(self._socket)
        self._socket.close()

    def _heard(self) -> None:
        while self._more():
            pass
        self._happened.set()

    def _more(self) -> bool:
        """Throw one message away; whether there was one."""
        try:
            self._socket.recv(1)
        except BlockingIOError:
            return False
        except OSError as error:
            # Some were lost; the rest is still there. uvloop's library watches a descriptor no more that has had an error.
            self._loop.remove_reader(self._socket)
            self._loop.add_reader(self._socket, self._heard)
            return error.errno == errno.ENOBUFS
        return True


def _open() -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0)
    sock.bind((0, _GROUPS))
    return sock
