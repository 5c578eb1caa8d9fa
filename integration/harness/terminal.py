"""A program on a pseudo-terminal, as a person would use it: type, read what appears, change the window."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from integration.harness import process
from integration.harness.host import Host


class Terminal:
    """``words`` on a fresh terminal inside ``host``; everything it printed stays in `seen`."""

    def __init__(self, host: Host, words: Sequence[str], *, rows: int = 24, cols: int = 80) -> None:
        self.master, replica = pty.openpty()
        self.seen = b""
        self._mark = 0
        self.resize(rows, cols)
        # The window's signals go to the session whose controlling terminal it is.
        argv = ["setsid", "--ctty", *host.argv(words)]
        self._child = process.spawn(
            argv, env=host.env | {"TERM": "xterm"}, stdin=replica, stdout=replica, stderr=replica
        )
        os.close(replica)

    def resize(self, rows: int, cols: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))

    def send(self, text: str) -> None:
        os.write(self.master, text.encode())

    def expect(self, pattern: str, *, within: float) -> "re.Match[bytes]":
        """Read until the pattern appears after the last match.

        :raises AssertionError: it did not, or the program ended; shows what was seen
        """
        deadline = time.monotonic() + within
        compiled = re.compile(pattern.encode())
        while (match := compiled.search(self.seen, self._mark)) is None:
            assert self._read(deadline - time.monotonic()), f"{pattern!r} not seen in {within:.0f} s: {self.seen!r}"
        self._mark = match.end()
        return match

    def wait(self, *, within: float) -> int:
        """Read to the end; the exit status."""
        deadline = time.monotonic() + within
        while self._read(deadline - time.monotonic()):
            pass
        try:
            return self._child.wait(max(deadline - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"still running after {within:.0f} s: {self.seen!r}") from error

    def close(self) -> None:
        process.finish(self._child)
        os.close(self.master)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self, left: float) -> bool:
        """Take what is there; False at the end of time or of the program."""
        if left <= 0 or not select.select([self.master], [], [], left)[0]:
            return False
        try:
            data = os.read(self.master, 65536)
        except OSError:  # EIO: the last program that had the terminal open is gone
            return False
        self.seen += data
        return bool(data)
