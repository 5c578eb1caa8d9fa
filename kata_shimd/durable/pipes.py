"""The bytes of one standard stream between guest and host, in a memfd that outlives the daemon: none is lost, none doubled.

Out of the guest: bytes are written behind the end and committed together with the number of the call that brought them, by one
store; `sendfile` takes them out and moves the file offset in the same system call. Into the guest: `splice` moves bytes from the
FIFO to the file and moves the offset; how much the guest has taken is committed together with the number of the call that told so.

The committed word holds the call's number above and the low 32 bits of the position below. The offset, which is exact, is never
further than a memory's worth away from the position, so the rest of it follows.
"""

import mmap
import os
import sys
from collections.abc import Callable
from typing import Final

from kata_shimd.durable import points
from kata_shimd.durable.memory import punch
from kata_shimd.errors import HostFailed

HEAD: Final = mmap.PAGESIZE
#: As `tape.FORMAT`.
FORMAT: Final = 1
_MAGIC: Final = 0x6B617470_00000000 | FORMAT  # "katp"
_VERSION, _WORD, _OWNER = range(3)
_LOW: Final = 0xFFFFFFFF
#: Memory of what has gone through is given back by so much.
_FORGET: Final = 1 << 20
_NONBLOCK: Final = 2  # SPLICE_F_NONBLOCK


def owner_of(fd: int) -> int:
    """Whose stream the memory in ``fd`` is of; 0 where the version that made it did not say."""
    return int.from_bytes(os.pread(fd, 8, 8 * _OWNER), sys.byteorder)


class _Pipe:
    """A memfd with a committed word; ``fd`` becomes ours. A new one is of ``owner``."""

    def __init__(self, fd: int, *, owner: int, point: Callable[[], None]) -> None:
        self.fd, self._point = fd, point
        self._map = mmap.mmap(fd, HEAD)
        self._words = memoryview(self._map).cast("Q")
        self._forgotten = 0
        if self._words[_VERSION] == 0:
            os.lseek(fd, HEAD, os.SEEK_SET)
            self._words[_OWNER] = owner
            self._words[_VERSION] = _MAGIC
            point()
        elif self._words[_VERSION] != _MAGIC:
            raise HostFailed("read stream", hex(self._words[_VERSION]), "written by another version")

    @property
    def call(self) -> int:
        """The last call whose effect is committed; 0 before the first."""
        return self._words[_WORD] >> 32

    @property
    def _offset(self) -> int:
        return os.lseek(self.fd, 0, os.SEEK_CUR) - HEAD

    def _commit(self, call: int, position: int) -> None:
        self._words[_WORD] = call << 32 | position & _LOW
        self._point()

    def _forget(self, position: int) -> None:
        if position - self._forgotten > _FORGET:
            self._forgotten = position
            punch(self.fd, HEAD, HEAD + position)

    def close(self) -> None:
        self._words.release()
        self._map.close()
        os.close(self.fd)


class OutPipe(_Pipe):
    """From the guest to the host's reader."""

    def __init__(self, fd: int, *, owner: int = 0, point: Callable[[], None] = points.passed) -> None:
        super().__init__(fd, owner=owner, point=point)

    @property
    def _end(self) -> int:
        sent = self._offset
        return sent + ((self._words[_WORD] & _LOW) - sent & _LOW)

    @property
    def waiting(self) -> int:
        """Bytes that the reader has not taken."""
        return self._end - self._offset

    def put(self, data: bytes, call: int) -> None:
        """``data`` came with ``call``. :raises HostFailed: the host's memory is used up"""
        end = self._end
        try:
            written = os.pwrite(self.fd, data, HEAD + end)
        except OSError as error:
            raise HostFailed("keep output", "memfd", error.strerror or "") from error
        if written != len(data):
            raise HostFailed("keep output", "memfd", "no memory is left")
        self._point()
        self._commit(call, end + len(data))

    def send(self, fd: int) -> int:
        """Hand some of it to ``fd``; how much was taken. :raises OSError: as sendfile"""
        sent = os.sendfile(fd, self.fd, None, self.waiting)
        self._point()
        self._forget(self._offset)
        return sent

    def drop(self) -> None:
        """Nobody wants what waits."""
        os.lseek(self.fd, HEAD + self._end, os.SEEK_SET)
        self._point()


class InPipe(_Pipe):
    """From the host's writer to the guest."""

    def __init__(self, fd: int, *, owner: int = 0, point: Callable[[], None] = points.passed) -> None:
        super().__init__(fd, owner=owner, point=point)

    @property
    def _taken(self) -> int:
        received = self._offset
        return received - (received - (self._words[_WORD] & _LOW) & _LOW)

    def fill(self, fd: int, limit: int) -> int:
        """Take at most ``limit`` bytes from a FIFO; how many, 0 at its end. :raises OSError: as splice"""
        count = os.splice(fd, self.fd, limit, flags=_NONBLOCK)
        self._point()
        return count

    def peek(self, limit: int) -> bytes:
        """What the guest has not taken, or the beginning of it."""
        taken = self._taken
        return os.pread(self.fd, min(limit, self._offset - taken), HEAD + taken)

    def took(self, count: int, call: int) -> None:
        """The guest has taken ``count`` bytes, as ``call`` told."""
        taken = self._taken + count
        self._commit(call, taken)
        self._forget(taken)
