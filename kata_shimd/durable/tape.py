"""The journal of one connection: all that was received on it, and all that is to be sent, in a memfd that outlives the daemon.

Two streams of bytes, each only ever appended to, and a page of words that say how far each is true. Every commit is one aligned
store of eight bytes into the shared page, so a daemon that is killed leaves either the state before it or the one after.

*Receiving*: bytes are looked at without taking them (MSG_PEEK), written behind the tail, committed, and only then taken from the
socket; how many of them were taken when a daemon died, the kernel knows (SO_PEEK_OFF counts what was looked at and is still there).
*Sending*: `sendfile` takes bytes from the memfd at its file offset and moves the offset in the same system call; the offset
belongs to the open file, which the keeper holds too. So a frame is neither cut nor sent twice.

Must never happen: a byte behind a committed tail changes; a page is punched out that has not been sent.
"""

import mmap
import os
import socket
from collections.abc import Callable
from typing import Final

from kata_shimd.durable import points
from kata_shimd.durable.memory import punch
from kata_shimd.errors import HostFailed

HEAD: Final = mmap.PAGESIZE
#: Where the streams begin in the file, which is sparse.
RECEIVED: Final = HEAD
SENT: Final = 1 << 46

READ_SIZE: Final = 64 << 10
#: The format of what this file describes. Another is another file: a daemon goes on with it as it is, or not at all.
FORMAT: Final = 1
_MAGIC: Final = 0x6B617461_00000000 | FORMAT  # "kata"

# Words of the head.
_VERSION, _TAIL, _BASE, _END, _SENT_BASE = range(5)
#: The word _TAIL is the length of what was received, and below it how many of those bytes may still have to be taken.
_PENDING_BITS: Final = 17
_PENDING: Final = (1 << _PENDING_BITS) - 1

_SO_PEEK_OFF: Final = 42


class Tape:
    """The journal in ``fd``, which becomes ours. ``point`` is called after every step that a later daemon can see."""

    def __init__(self, fd: int, *, point: Callable[[], None] = points.passed) -> None:
        self.fd = fd
        self._point = point
        self._map = mmap.mmap(fd, HEAD)
        self._words = memoryview(self._map).cast("Q")
        if self._words[_VERSION] == 0:
            os.lseek(fd, SENT, os.SEEK_SET)
            self._set(_VERSION, _MAGIC)
        elif self._words[_VERSION] != _MAGIC:
            raise HostFailed("read journal of a connection", hex(self._words[_VERSION]), "written by another version")

    def close(self) -> None:
        self._words.release()
        self._map.close()
        os.close(self.fd)

    def _set(self, word: int, value: int) -> None:
        """A commit: one store."""
        self._words[word] = value
        self._point()

    # --- receiving ---------------------------------------------------------------------------------------------------

    def recover(self, sock: socket.socket) -> None:
        """Before the first `receive` of a daemon: take what an earlier one had written down and not taken yet."""
        word = self._words[_TAIL]
        if word & _PENDING:
            left = sock.getsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF)
            while left > 0:
                left -= len(sock.recv(left))
                self._point()
            self._set(_TAIL, word & ~_PENDING)
        # What was looked at and not written down is looked at again.
        sock.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, 0)

    def receive(self, sock: socket.socket) -> bytes:
        """What has come, at most `READ_SIZE`, now ours for ever; empty at the end. :raises OSError: as recv"""
        data = sock.recv(READ_SIZE, socket.MSG_PEEK)
        self._point()
        if not data:
            return data
        tail = self._length + len(data)
        self._write(RECEIVED + self._length, data)
        self._set(_TAIL, tail << _PENDING_BITS | len(data))
        left = len(data)
        while left:
            left -= len(sock.recv(left))
            self._point()
        self._set(_TAIL, tail << _PENDING_BITS)
        return data

    @property
    def _length(self) -> int:
        return self._words[_TAIL] >> _PENDING_BITS

    @property
    def received(self) -> bytes:
        """What was received and is not yet forgotten."""
        base = self._words[_BASE]
        return self._read(RECEIVED + base, self._length - base)

    @property
    def weight(self) -> int:
        """Bytes of both streams that are kept."""
        return self._length - self._words[_BASE] + self._words[_END] - self._words[_SENT_BASE]

    # --- sending -----------------------------------------------------------------------------------------------------

    def append(self, frame: bytes) -> None:
        """Fix what is to be sent next: from here on it will be, once, by whichever daemon."""
        end = self._words[_END]
        self._write(SENT + end, frame)
        self._set(_END, end + len(frame))

    @property
    def unsent(self) -> int:
        return SENT + self._words[_END] - os.lseek(self.fd, 0, os.SEEK_CUR)

    def send(self, fd: int) -> int:
        """Send some of what is unsent; how much the descriptor took. :raises OSError: as sendfile"""
        sent = os.sendfile(fd, self.fd, None, self.unsent)
        self._point()
        return sent

    @property
    def sent(self) -> bytes:
        """What was to be sent, and is not yet forgotten, be it sent or not."""
        base = self._words[_SENT_BASE]
        return self._read(SENT + base, self._words[_END] - base)

    # --- forgetting --------------------------------------------------------------------------------------------------

    def forget(self, keep: bytes) -> None:
        """Let go of all that was received and sent, but for ``keep``, which stands for all of `received` that still matters.

        Only when what was received ends with a whole frame, and nothing is unsent: otherwise nothing is done.
        """
        if self.unsent:
            return
        length, end = self._length, self._words[_END]
        self._write(RECEIVED + length, keep)
        self._set(_TAIL, length + len(keep) << _PENDING_BITS)
        self._set(_BASE, length)
        self._set(_SENT_BASE, end)
        punch(self.fd, RECEIVED, RECEIVED + length)
        punch(self.fd, SENT, SENT + end)
        self._point()

    # --- the file ----------------------------------------------------------------------------------------------------

    def _read(self, begin: int, count: int) -> bytes:
        return os.pread(self.fd, count, begin)

    def _write(self, begin: int, data: bytes) -> None:
        """:raises HostFailed: the host's memory is used up"""
        try:
            written = os.pwrite(self.fd, data, begin)
        except OSError as error:
            raise HostFailed("write journal of a connection", f"fd {self.fd}", error.strerror or "") from error
        if written != len(data):
            raise HostFailed("write journal of a connection", f"fd {self.fd}", "no memory is left")
        self._point()
