"""Talking to the systemd that runs this daemon as the main process of its pod's unit (sd_notify(3)).

A daemon that a launcher began by itself has nobody to talk to. Must never happen: a child of ours that believes the variables are
meant for it.
"""

import socket
from collections.abc import MutableMapping
from pathlib import Path
from typing import Final, Self

from kata_shimd.errors import InvalidArgument

#: systemd reads at once; one that does not is as good as gone for that long.
_SECONDS: Final = 2.0
_JOURNAL: Final = Path("/run/systemd/journal/socket")


class Notifier:
    """One datagram a word. ``watchdog``: systemd wants to hear ``WATCHDOG=1`` at least once in so many seconds, if at all."""

    def __init__(self, address: str, watchdog: float | None) -> None:
        self.watchdog = watchdog
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.settimeout(_SECONDS)
        try:
            self._sock.connect("\0" + address[1:] if address.startswith("@") else address)
        except OSError:
            self._sock.close()
            raise

    @classmethod
    def adopt(cls, environ: MutableMapping[str, str]) -> Self | None:
        """From the environment, which loses the variables; None when nobody listens.

        :raises InvalidArgument: somebody should, and does not
        """
        address, seconds = environ.pop("NOTIFY_SOCKET", ""), environ.pop("WATCHDOG_USEC", "")
        environ.pop("WATCHDOG_PID", None)
        if not address:
            return None
        try:
            return cls(address, int(seconds) / 1e6 if seconds.isdigit() and int(seconds) else None)
        except OSError as error:
            raise InvalidArgument("tell systemd", address, error.strerror or "") from error

    def say(self, text: str, *fds: int) -> None:
        """:raises OSError: systemd does not take it"""
        socket.send_fds(self._sock, [text.encode()], fds)

    def close(self) -> None:
        self._sock.close()


def journal_socket() -> str | None:
    """Where journald listens, if it does."""
    return str(_JOURNAL) if _JOURNAL.exists() else None
