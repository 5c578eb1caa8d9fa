"""The guest's console: read from its first byte, kept in memory and in a capped file, never in QEMU's way.

The guest writes whatever it likes, as fast as it likes: control characters are made visible, so that neither a terminal nor a
log can be driven by them, and size is bounded everywhere. The beginning (why did it not boot) and the end (why did it die) are
kept; the middle goes.
"""

import asyncio
import codecs
import os
import socket
from pathlib import Path
from typing import Final

#: What is kept in memory, in characters.
RING: Final = 64 << 10
#: How much of the log's beginning survives every cut.
HEAD: Final = 256 << 10
_READ: Final = 64 << 10
_CUT: Final = b"\n[... cut here ...]\n"


class Sanitizer:
    """Bytes of the guest → text without control characters, bidirectional overrides or broken UTF-8."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")

    def feed(self, data: bytes) -> str:
        """A character cut in two by a read is put together by the next one."""
        text = self._decoder.decode(data)
        return text if text.isprintable() else "".join(map(_harmless, text))


def _harmless(char: str) -> str:
    if char.isprintable() or char in "\n\t":
        return char
    return "" if char == "\r" else char.encode("unicode_escape").decode("ascii")


class CappedFile:
    """A file of at most ``limit`` bytes that keeps its beginning and its end. A full disk makes it short, never fails."""

    def __init__(self, path: Path, limit: int) -> None:
        self._path = path
        self._limit = limit
        self._head = min(HEAD, limit // 4)
        self._fd = self._open()
        self._size = os.fstat(self._fd).st_size if self._fd >= 0 else 0

    def append(self, data: bytes) -> None:
        if self._fd < 0:
            return
        if self._size + len(data) > self._limit:
            self._cut()
        try:
            self._size += os.write(self._fd, data[: self._limit // 2])
        except OSError:
            pass

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            return os.open(self._path, flags, 0o600)
        except OSError:
            return -1

    def _cut(self) -> None:
        """Keep the head and a quarter of the limit of the end; in place, as readers hold the file open."""
        try:
            tail_size = min(max(0, self._limit // 4 - len(_CUT)), max(0, self._size - self._head))
            tail = os.pread(self._fd, tail_size, self._size - tail_size)
            os.ftruncate(self._fd, min(self._head, self._size))
            os.write(self._fd, _CUT + tail)
        except OSError:
            pass
        self._size = os.fstat(self._fd).st_size


class Console:
    """Reads the console's socket until QEMU closes it."""

    def __init__(self, log: Path, *, limit: int) -> None:
        self._file = CappedFile(log, limit)
        self._sanitizer = Sanitizer()
        self._ring = ""
        self._socket: socket.socket | None = None

    def attach(self, connected: socket.socket) -> None:
        """Read from ``connected``, non-blocking, from now on; an earlier socket is let go."""
        self.close_socket()
        self._socket = connected
        asyncio.get_running_loop().add_reader(connected, self._on_readable)

    @property
    def attached(self) -> bool:
        """Whether QEMU still holds the other end, as far as was read."""
        return self._socket is not None

    def tail(self, limit: int = 4096) -> str:
        """The last ``limit`` characters, harmless to show."""
        return self._ring[-limit:].strip()

    def close_socket(self) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None

    def drain(self) -> None:
        """Take what the socket still holds after QEMU's end: its last words, at most what the kernel buffers."""
        while self._socket is not None and self._read():
            pass

    def close(self) -> None:
        self.drain()
        self.close_socket()
        self._file.close()

    def _on_readable(self) -> None:
        self._read()

    def _read(self) -> bool:
        """Take one piece; whether there was any. A piece, not all: a guest that floods must not starve the loop."""
        assert self._socket is not None
        try:
            data = self._socket.recv(_READ)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self.close_socket()
            return False
        self._keep(self._sanitizer.feed(data))
        return True

    def _keep(self, text: str) -> None:
        self._ring = (self._ring + text)[-RING:]
        self._file.append(text.encode())
