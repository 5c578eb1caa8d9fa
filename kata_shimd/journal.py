"""The journal: what happened to a pod, bounded, kept after its death, read by `kata-shimd why`.

JSON lines in ``RUN/journal/<pod>.jsonl``, each ``{"t": <unix ns>, "event": ..., ...}``. A journal that cannot be written
(full disk) is silently short: it must never fail the thing it reports on. Values from the guest are cut.
"""

import json
import os
import time
from pathlib import Path
from typing import Any, Final

MAX_VALUE: Final = 2048
MAX_BYTES: Final = 1 << 20
KEEP_DEAD: Final = 64


class Journal:
    """Append events; at ``max_bytes`` the file is moved to ``.old`` (one generation) and begun anew."""

    def __init__(self, path: Path, *, max_bytes: int = MAX_BYTES) -> None:
        self.path = path
        self._max = max_bytes
        self._size = 0
        self._fd = -1
        self._open()

    def write(self, event: str, /, **fields: Any) -> None:
        """Write one event; ``fields`` are anything JSON can say, other values are shown by repr."""
        line = {"t": time.time_ns(), "event": event, **{k: _cut(v) for k, v in fields.items()}}
        raw = json.dumps(line, separators=(",", ":"), default=repr).encode(errors="replace") + b"\n"
        if self._size + len(raw) > self._max:
            self._rotate()
        try:
            self._size += os.write(self._fd, raw)
        except OSError:
            pass

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> None:
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            self._size = os.fstat(self._fd).st_size
        except OSError:
            self._fd = -1

    def _rotate(self) -> None:
        self.close()
        try:
            self.path.replace(self.path.with_suffix(".jsonl.old"))
        except OSError:
            pass
        self._open()


def _cut(value: Any) -> Any:
    if isinstance(value, str) and len(value) > MAX_VALUE:
        return value[:MAX_VALUE] + f"... ({len(value)} characters)"
    return value


def read(path: Path) -> list[dict[str, Any]]:
    """All events of a journal, the older generation first; lines torn by a crash are passed over."""
    events: list[dict[str, Any]] = []
    for file in (path.with_suffix(".jsonl.old"), path):
        try:
            text = file.read_text(errors="replace")
        except FileNotFoundError:
            continue
        for raw in text.splitlines():
            try:
                events.append(json.loads(raw))
            except ValueError:
                continue
    return events


def prune(directory: Path, live: set[str], *, keep: int = KEEP_DEAD) -> None:
    """Remove the oldest journals of pods that are not ``live`` (by hash), keeping the newest ``keep``."""
    dead = [file for file in directory.glob("*.jsonl") if file.stem not in live]
    dead.sort(key=lambda file: file.stat().st_mtime, reverse=True)
    for file in dead[keep:]:
        file.unlink(missing_ok=True)
        file.with_suffix(".jsonl.old").unlink(missing_ok=True)
