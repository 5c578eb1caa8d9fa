"""What a later daemon must know and nobody else does: keys and JSON values, in a file of lines.

A line is one set of changes, written by one write, so it is there wholly or not at all; a torn last line was never acted on.
Changes are gathered until `flush`, which is called before anything that follows from them can be seen from outside. When most of
the file is history it is written anew beside itself and renamed.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from kata_shimd import __version__
from kata_shimd.durable import points
from kata_shimd.errors import HostFailed

NAME: Final = "state"
#: 2 names the version that wrote it, so that a refusal can; otherwise it is 1.
VERSION: Final = 2
#: The formats that can be read. A file keeps the one it has until `rewrite`, so that a daemon like the one before can go on.
READS: Final = (1, 2)
#: The formats that `rewrite` can make.
WRITES: Final = (1, 2)
_VERSION_KEY: Final = "version"
_WRITER_KEY: Final = "writer"
#: History beyond this, and beyond what is live, is dropped.
_SLACK: Final = 256 << 10


class Store:
    """The values in ``path``. Setting None removes a key."""

    def __init__(self, path: Path, *, point: Callable[[], None] = points.passed) -> None:
        self._path, self._point = path, point
        self._values: dict[str, Any] = {}
        self._changes: dict[str, Any] = {}
        self._live = 0
        self._size = self._load()
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not self._values:
            self._be(VERSION)
            self.flush()

    def close(self) -> None:
        os.close(self._fd)

    @property
    def version(self) -> int:
        """The format of the file."""
        return int(self._values[_VERSION_KEY])

    def rewrite(self, version: int) -> None:
        """Write the whole file anew in the format ``version``, one of `WRITES`; nothing is done if it has it.

        :raises HostFailed: it could not be written, and is as it was
        """
        if version == self.version:
            return
        self._be(version)
        self.flush()
        self._compact()

    def _be(self, version: int) -> None:
        self.put(_VERSION_KEY, version)
        self.put(_WRITER_KEY, __version__ if version > 1 else None)

    def get(self, key: str) -> Any:
        return self._values.get(key)

    def under(self, prefix: str) -> Iterator[tuple[str, Any]]:
        """What is set below ``prefix``: the rest of its key, and its value, oldest key first."""
        return (
            (key.removeprefix(prefix), value) for key, value in list(self._values.items()) if key.startswith(prefix)
        )

    def put(self, key: str, value: Any) -> None:
        """Change a value, durable with the next `flush`."""
        _apply(self._values, {key: value})
        self._changes[key] = value

    def flush(self) -> None:
        """Make all changes since the last one durable, together.

        :raises HostFailed: they could not be written
        """
        if not self._changes:
            return
        line = json.dumps(self._changes, separators=(",", ":")).encode() + b"\n"
        self._write(self._fd, line)
        self._changes = {}
        self._size += len(line)
        self._point()
        if self._size > 2 * self._live + _SLACK:
            self._compact()

    def _write(self, fd: int, line: bytes) -> None:
        try:
            written = os.write(fd, line)
        except OSError as error:
            raise HostFailed("write state", str(self._path), error.strerror or "") from error
        if written != len(line):
            # A line of its own for whoever writes next; half of this one counts for nothing.
            os.write(fd, b"\n")
            raise HostFailed("write state", str(self._path), "no space left", hint="free space in the run directory")

    def _compact(self) -> None:
        line = json.dumps(self._values, separators=(",", ":")).encode() + b"\n"
        beside = self._path.with_name(f"{self._path.name}.new")
        fd = os.open(beside, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            self._write(fd, line)
            self._point()
            beside.rename(self._path)
        except BaseException:
            os.close(fd)
            raise
        self._point()
        os.close(self._fd)
        self._fd, self._size, self._live = fd, len(line), len(line)

    def _load(self) -> int:
        """Read what there is; its size. A torn last line is cut off, so that the next one does not continue it."""
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise HostFailed("read state", str(self._path), error.strerror or "") from error
        whole = data.rfind(b"\n") + 1
        if whole != len(data):
            os.truncate(self._path, whole)
        for raw in data[:whole].splitlines():
            _apply(self._values, _line(raw))
        if self._values:
            self._check()
        self._live = whole
        return whole

    def _check(self) -> None:
        """:raises HostFailed: it is of a format that we cannot read"""
        found = self._values.get(_VERSION_KEY)
        if found in READS and not isinstance(found, bool):
            return
        writer = self._values.get(_WRITER_KEY, "an unknown version")
        hint = "kata-shimd of that version can go on with this pod"
        if not isinstance(found, int) or isinstance(found, bool) or found < VERSION:
            hint = f"this version reads formats {READS[0]} to {READS[-1]}"
        cause = f"format {found}, written by {writer}; this is {__version__}, which reads none beyond {VERSION}"
        raise HostFailed("read state", str(self._path), cause, hint=hint)


def _line(raw: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _apply(values: dict[str, Any], changes: Mapping[str, Any]) -> None:
    for key, value in changes.items():
        if value is None:
            values.pop(key, None)
        else:
            values[key] = value
