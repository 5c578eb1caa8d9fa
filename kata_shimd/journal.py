"""The journal: what happened to a pod, bounded, kept after its death, read by `kata-shimd why`.

JSON lines in ``RUN/journal/<pod>.jsonl``, each ``{"t": <unix ns>, "event": ..., ...}``. A little room ahead is always reserved, so
that the last words are heard on a disk that has become full. A journal that cannot be written all the same is short, and says so
when it can be: it must never fail the thing it reports on. Values from the guest are cut.
"""

import ctypes
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from kata_shimd.errors import HostFailed

MAX_VALUE: Final = 2048
MAX_BYTES: Final = 1 << 20
KEEP_DEAD: Final = 64
OLD: Final = ".jsonl.old"
#: Bytes of disk that are kept ahead of what is written; renewed when half of them are used.
RESERVE: Final = 32 << 10
_FALLOC_FL_KEEP_SIZE: Final = 1
_libc: Final = ctypes.CDLL(None)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)

#: How many lines are repeated in each new file at most.
MAX_HEAD: Final = 32


class Journal:
    """Append events; at ``max_bytes`` the file is moved to ``.old`` (one generation) and begun anew. Fit for any thread: who is
    attached to a daemon whose loop hangs is on record all the same."""

    def __init__(self, path: Path, *, max_bytes: int = MAX_BYTES) -> None:
        self.path = path
        self._max = max_bytes
        self._size = self._reserved = self._lost = 0
        self._fd = -1
        self._head: list[bytes] = []
        self._lock = threading.RLock()
        self._open()

    def write(self, event: str, /, **fields: Any) -> None:
        """Write one event; ``fields`` are anything JSON can say, other values are shown by repr."""
        raw = _line(event, fields)
        with self._lock:
            self._append(raw)

    def begin(self, event: str, /, **fields: Any) -> None:
        """As `write`, for what every reader needs, such as whose journal it is: never rotated away."""
        raw = _line(event, {**fields, "head": True})
        with self._lock:
            self._append(raw)
            if len(self._head) < MAX_HEAD:
                self._head.append(raw)

    def go_on(self, event: str, /, **fields: Any) -> None:
        """As `begin`, for a daemon that goes on where another was: what the life began with stays known as well."""
        beginning = self._beginning()
        self._head += [beginning] if beginning else []
        self.begin(event, **fields, later=True)

    def _beginning(self) -> bytes | None:
        """The line by which this life began, if it is still there. Quotes within values are escaped, so none looks like it."""
        for file in reversed(files(self.path)):
            try:
                lines = file.read_bytes().splitlines(keepends=True)
            except OSError:
                continue
            found = (line for line in reversed(lines) if b'"head":true' in line and b'"later":true' not in line)
            if (beginning := next(found, None)) is not None:
                return beginning
        return None

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> None:
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            self._size = self._reserved = os.fstat(self._fd).st_size
        except OSError:
            self._fd = -1

    def _append(self, raw: bytes) -> None:
        if self._size + len(raw) > self._max:
            self._rotate()
        if self._lost:
            raw = _line("journal-short", {"lost": self._lost}) + raw
        self._reserve()
        try:
            self._size += os.write(self._fd, raw)
            self._lost = 0
        except OSError:
            self._lost += 1

    def _reserve(self) -> None:
        """Where it cannot be done, the disk being full or of a kind that reserves nothing, there is what there is."""
        if self._size + RESERVE // 2 > self._reserved:
            _libc.fallocate(self._fd, _FALLOC_FL_KEEP_SIZE, self._size, RESERVE)
            self._reserved = self._size + RESERVE

    def _rotate(self) -> None:
        self.close()
        try:
            self.path.replace(self.path.with_suffix(OLD))
        except OSError:
            pass
        self._open()
        for raw in self._head:
            try:
                self._size += os.write(self._fd, raw)
            except OSError:
                pass


def _line(event: str, fields: Mapping[str, Any]) -> bytes:
    line = {"t": time.time_ns(), "event": event, **{k: _cut(v) for k, v in fields.items()}}
    return json.dumps(line, separators=(",", ":"), default=repr).encode(errors="replace") + b"\n"


def _cut(value: Any) -> Any:
    if isinstance(value, str) and len(value) > MAX_VALUE:
        return value[:MAX_VALUE] + f"... ({len(value)} characters)"
    return value


def files(path: Path) -> tuple[Path, Path]:
    """The files of a journal, the older generation first; either may be missing."""
    return path.with_suffix(OLD), path


def read(path: Path) -> list[dict[str, Any]]:
    """All events of a journal, the older generation first; lines torn by a crash are passed over.

    :raises HostFailed: it is there and cannot be read, so "it is empty" would be a lie
    """
    events: list[dict[str, Any]] = []
    heads: set[str] = set()
    for raw in _lines(path):
        try:
            event = json.loads(raw)
        except (ValueError, RecursionError):
            continue
        if not isinstance(event, dict) or (event.get("head") and raw in heads):
            continue
        if event.get("head"):
            heads.add(raw)
        events.append(event)
    return events


def _lines(path: Path) -> Iterator[str]:
    for file in files(path):
        try:
            yield from file.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            continue
        except OSError as error:
            hint = "run as root" if isinstance(error, PermissionError) else ""
            raise HostFailed("read journal", str(file), error.strerror or "", hint=hint) from error


def prune(directory: Path, live: set[str], *, keep: int = KEEP_DEAD) -> None:
    """Remove the oldest journals of pods that are not ``live`` (by hash), keeping the newest ``keep``."""
    dead = [file for file in directory.glob("*.jsonl") if file.stem not in live]
    dead.sort(key=_modified, reverse=True)
    for file in dead[keep:]:
        file.unlink(missing_ok=True)
        file.with_suffix(OLD).unlink(missing_ok=True)


def _modified(file: Path) -> float:
    """Several daemons may prune at once: one that is gone already counts as the oldest."""
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0
