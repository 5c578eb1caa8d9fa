"""Standard streams on the host: containerd's FIFOs, files and loggers (`containerd.md` §5).

FIFOs are raw non-blocking fds on the loop; nothing here blocks on a client that is not there, has gone, or comes
back. An output FIFO
is opened for reading too, so that a client's restart is neither EPIPE nor end of file.
"""

import asyncio
import logging
import os
import stat
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import unquote, urlsplit

from kata_shimd.errors import InvalidArgument
from kata_shimd.pod.values import Stdio

_log = logging.getLogger(__name__)
OpenedT = TypeVar("OpenedT")

#: One read or write of a FIFO; Linux pipes hold 64 KiB unless enlarged.
CHUNK: Final = 64 << 10


class FifoSource:
    """stdin. A write handle of our own keeps the end of file away until the client says CloseIO, as runc's shim has it."""

    def __init__(self, fd: int) -> None:
        """``fd`` reads, and becomes ours; its path may be gone."""
        self._fd = fd
        self._holder = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    @classmethod
    def at(cls, path: Path) -> "FifoSource":
        return cls(_open_fifo(path, os.O_RDONLY))

    def fileno(self) -> int:
        return self._fd

    async def read(self) -> bytes:
        while True:
            try:
                return os.read(self._fd, CHUNK)
            except BlockingIOError:
                await readable(self._fd)

    def took(self, count: int) -> None:
        """What was read is gone from the FIFO in any case."""

    def end(self) -> None:
        if self._holder >= 0:
            os.close(self._holder)
            self._holder = -1

    def close(self) -> None:
        self.end()
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1


class PipeSink:
    """A non-blocking fd to write to, ours to close."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    async def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._fd, view[:CHUNK]) :]
            except BlockingIOError:
                await writable(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            asyncio.get_running_loop().remove_writer(self._fd)
            os.close(self._fd)
            self._fd = -1


class FifoSink(PipeSink):
    """stdout or stderr."""

    def __init__(self, path: Path) -> None:
        super().__init__(_open_fifo(path, os.O_RDWR))


class FileSink:
    """``file:///path``: appended to; stdout and stderr may share it."""

    def __init__(self, path: Path) -> None:
        try:
            _make_directory(path.parent)
            self._fd = _append_to(path)
        except OSError as error:
            raise InvalidArgument("open stdio", str(path), error.strerror or "cannot be opened") from error

    async def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


AnySink = PipeSink | FileSink


def _make_directory(path: Path) -> None:
    """With its parents, each of them 0755: the daemon's umask is not for files that others read."""
    if path.is_dir():
        return
    _make_directory(path.parent)
    with suppress(FileExistsError):
        path.mkdir()
        path.chmod(0o755)


def _append_to(path: Path) -> int:
    """A descriptor; a new file is 0644, one that is there keeps its mode. A FIFO without a reader is an error, not a wait."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    try:
        fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return os.open(path, flags)
    os.fchmod(fd, 0o644)
    return fd


class HostStreams:
    """Opens what containerd names: a path or ``fifo://`` is a FIFO, ``file://`` a file, ``binary://`` a logger's pipes.

    ``start_logger`` starts the program of a ``binary://`` URI for a container, and gives its stdout and stderr pipes;
    ``settle_loggers`` waits for the ends of a container's.
    """

    def __init__(
        self,
        start_logger: Callable[[str, str], Awaitable[tuple[PipeSink, PipeSink]]],
        settle_loggers: Callable[[str], Awaitable[None]],
    ) -> None:
        self._start_logger, self._settle_loggers = start_logger, settle_loggers

    def open_source(self, container_id: str, exec_id: str, uri: str) -> FifoSource | None:
        return FifoSource.at(_path(uri)) if uri else None

    async def open_sinks(
        self, container_id: str, exec_id: str, stdout: str, stderr: str
    ) -> tuple[AnySink | None, AnySink | None]:
        """Only stdout's scheme counts: a file or a logger takes stderr too, whatever stderr says."""
        match urlsplit(stdout).scheme:
            case "binary":
                return await self._start_logger(container_id, stdout)
            case "file":
                return FileSink(_path(stdout)), FileSink(_path(stdout))
            case _:
                return _sink(stdout), _sink(stderr)

    async def settle(self, container_id: str) -> None:
        await self._settle_loggers(container_id)

    async def take_up(
        self, container_id: str, exec_id: str, stdio: Stdio
    ) -> tuple[FifoSource | None, AnySink | None, AnySink | None]:
        """By their names; a logger is not started again."""
        out, err = _taken_up_sinks(stdio)
        return _or_none(FifoSource.at, stdio.stdin), out, err

    def has_left(self, container_id: str, exec_id: str, stdio: Stdio) -> bool:
        return False


def _taken_up_sinks(stdio: Stdio) -> tuple[AnySink | None, AnySink | None]:
    match urlsplit(stdio.stdout).scheme:
        case "binary":
            return None, None
        case "file":
            return _or_none(FileSink, stdio.stdout), _or_none(FileSink, stdio.stdout)
        case _:
            return _or_none(FifoSink, stdio.stdout), _or_none(FifoSink, "" if stdio.terminal else stdio.stderr)


def _or_none(opener: Callable[[Path], OpenedT], uri: str) -> OpenedT | None:
    try:
        return opener(_path(uri)) if uri else None
    except InvalidArgument as error:
        _log.warning("a stream cannot be taken up: %s", error)
        return None


def _sink(uri: str) -> FifoSink | None:
    return FifoSink(_path(uri)) if uri else None


def _path(uri: str) -> Path:
    parts = urlsplit(uri)
    if parts.scheme not in ("", "fifo", "file"):
        hint = "a FIFO's path, fifo://, file:// or binary://"
        raise InvalidArgument("open stdio", uri, f"unknown scheme {parts.scheme!r}", hint=hint)
    path = Path(unquote(parts.path)) if parts.scheme else Path(uri)
    if not path.is_absolute():
        raise InvalidArgument("open stdio", uri, "the path is not absolute")
    return path


def _open_fifo(path: Path, flags: int) -> int:
    try:
        fd = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidArgument("open stdio", str(path), error.strerror or "cannot be opened") from error
    if not stat.S_ISFIFO(os.fstat(fd).st_mode) and not stat.S_ISCHR(os.fstat(fd).st_mode):
        os.close(fd)
        raise InvalidArgument("open stdio", str(path), "is no FIFO", hint="use file:// for a file")
    return fd


async def readable(fd: int) -> None:
    """Wait until there is something to read, or the end."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(fd, _wake, ready)
    try:
        await ready
    finally:
        loop.remove_reader(fd)


async def writable(fd: int) -> None:
    """Wait until there is room."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_writer(fd, _wake, ready)
    try:
        await ready
    finally:
        loop.remove_writer(fd)


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
