"""Logging with context: pod, container, exec and rpc are context variables, stamped on every line.

Lines go to containerd's ``log`` FIFO (read into containerd's own log) in its text format, and never block: containerd may have
gone and left nobody to read. Levels: debug is each frame and QMP line, info each change of state, warning "we coped", error "we
did not". Environment, arguments and stdio are never logged.
"""

import errno
import logging
import os
import socket
import struct
import sys
from collections.abc import Mapping
from contextlib import suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Final

pod: ContextVar[str] = ContextVar("pod", default="")
container: ContextVar[str] = ContextVar("container", default="")
exec_id: ContextVar[str] = ContextVar("exec_id", default="")
rpc: ContextVar[str] = ContextVar("rpc", default="")

_CONTEXT: Final = (("pod", pod), ("container", container), ("exec", exec_id), ("rpc", rpc))


class ContextFormatter(logging.Formatter):
    """containerd's text format: ``time="…" level=info msg="…" key=value``."""

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        if record.exc_info:
            message += "\n" + self.formatException(record.exc_info)
        when = self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + f".{int(record.msecs):03d}"
        fields = "".join(f" {key}={quote(value)}" for key, var in _CONTEXT if (value := var.get()))
        level = record.levelname.lower()
        return f'time="{when}" level={level} msg={quote(message)} logger={record.name}{fields}'


def quote(text: str) -> str:
    """Quote as Go's logfmt does; control characters are escaped, so one record is one line."""
    if text and all(ch.isalnum() or ch in "-_./:@" for ch in text):
        return text
    body = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(ch if ch.isprintable() else ch.encode("unicode_escape").decode() for ch in body) + '"'


class FifoHandler(logging.Handler):
    """Write lines to containerd's ``log`` FIFO; what does not fit is dropped and counted.

    Opened O_RDWR, so that neither the open nor a write ever waits for a reader (`containerd.md` §1.8).
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self.dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        try:
            os.write(self._fd, self.format(record).encode(errors="replace")[: 1 << 15] + b"\n")
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EPIPE):
                self.handleError(record)
            self.dropped += 1

    def close(self) -> None:
        os.close(self._fd)
        super().close()


#: journald's levels are syslog's.
_PRIORITIES: Final = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
#: A longer field would not fit into a datagram.
_FIELD_MAX: Final = 32 << 10


class JournalHandler(logging.Handler):
    """Write records to journald by its own protocol, context as fields; what it does not take is dropped and counted."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.setblocking(False)
        try:
            self._sock.connect(path)
        except OSError:
            self._sock.close()
            raise
        self.dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._sock.send(fields(record))
        except OSError:
            self.dropped += 1

    def close(self) -> None:
        self._sock.close()
        super().close()


def fields(record: logging.LogRecord) -> bytes:
    """A datagram of systemd's native journal protocol: ``NAME=value`` lines; a value of several lines goes with its length."""
    message = record.getMessage()
    if record.exc_info:
        message += "\n" + logging.Formatter().formatException(record.exc_info)
    told: Mapping[str, str] = {
        "MESSAGE": message,
        "PRIORITY": str(_PRIORITIES.get(record.levelno, 6)),
        "SYSLOG_IDENTIFIER": "kata-shimd",
        "LOGGER": record.name,
        **{f"KATA_{key.upper()}": value for key, var in _CONTEXT if (value := var.get())},
    }
    return b"".join(_field(name, value.encode(errors="replace")[:_FIELD_MAX]) for name, value in told.items())


def _field(name: str, value: bytes) -> bytes:
    if b"\n" in value:
        return name.encode() + b"\n" + struct.pack("<Q", len(value)) + value + b"\n"
    return name.encode() + b"=" + value + b"\n"


def configure(fifo: Path, *, debug: bool, journal: str | None = None) -> None:
    """Send the root logger to ``fifo``, or to stderr where containerd made none; and to journald at ``journal``."""
    handler: logging.Handler
    try:
        handler = FifoHandler(fifo)
    except OSError:
        handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(ContextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    if journal is not None:
        with suppress(OSError):
            root.handlers.append(JournalHandler(journal))
    root.setLevel(logging.DEBUG if debug else logging.INFO)
    logging.getLogger("asyncio").setLevel(logging.INFO)
    logging.raiseExceptions = False
