"""Logging binaries: ``binary:///path?key=value`` starts a program that takes a container's output (`containerd.md` §5).

It gets stdout's pipe at fd 3, stderr's at fd 4, and at fd 5 a pipe to close when it is ready; of the environment only
CONTAINER_ID and CONTAINER_NAMESPACE. It ends at the end of its input, and its container's Delete waits a little for that; one
that does not end is ended with its container.
"""

import asyncio
import fcntl
import logging
import os
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

from kata_shimd import supervise
from kata_shimd.errors import DeadlineExceeded, HostFailed, InvalidArgument
from kata_shimd.host.process import Gate, Process, spawn
from kata_shimd.host.stdio import PipeSink, readable
from kata_shimd.ledger import Ledger, container_scope

_log = logging.getLogger(__name__)

#: How long containerd's own shim waits between SIGTERM and SIGKILL.
GRACE_MS: Final = 12_000
_WHAT: Final = "logger"
_STDERR: Final = "logger.stderr"
#: Descriptors we hand on are kept clear of the numbers the logger expects.
_CLEAR: Final = 16


class Loggers:
    """Starts loggers of a pod's containers, in the containers' scopes of the ledger.

    One has ``ready_seconds`` to say that it is ready, and at Delete ``end_seconds`` to take what is left in its pipes.
    """

    def __init__(self, ledger: Ledger, gate: Gate, namespace: str, *, ready_seconds: float, end_seconds: float) -> None:
        self._ledger, self._gate, self._namespace = ledger, gate, namespace
        self._ready, self._end = ready_seconds, end_seconds
        self._running: dict[str, list[Process]] = {}

    async def start(self, container_id: str, uri: str) -> tuple[PipeSink, PipeSink]:
        """Start the program of ``uri``; the pipes to write stdout and stderr to.

        :raises InvalidArgument: the program is not named by an absolute path, or cannot be run
        :raises DeadlineExceeded: it never said that it is ready
        """
        with ExitStack() as ends:
            out, err, ready = (_Pipe.make(ends) for _ in range(3))
            process = self._spawn(container_id, arguments(uri), (out.read, err.read, ready.write))
            for fd in (out.read, err.read, ready.write):
                os.close(fd)
            ends.pop_all()
            try:
                await self._wait_ready(process, ready.read, uri)
            except BaseException:
                process.kill()
                os.close(out.write)
                os.close(err.write)
                raise
            finally:
                os.close(ready.read)
        self._remember(container_id, process)
        return PipeSink(out.write), PipeSink(err.write)

    def _remember(self, container_id: str, process: Process) -> None:
        alive = [other for other in self._running.get(container_id, ()) if other.returncode is None]
        self._running[container_id] = [*alive, process]

    async def settle(self, container_id: str) -> None:
        """The pipes of a container's loggers are closed: wait until they have ended, at most ``end_seconds``."""
        running = self._running.pop(container_id, [])
        left = list(self._left(container_id, {process.record for process in running}))
        try:
            async with asyncio.timeout(self._end):
                for process in (*running, *left):
                    await process.wait()
        except TimeoutError:
            _log.warning("%s: its logger does not end at the end of its input", container_id)
        finally:
            for process in left:
                process.forget()

    def _left(self, container_id: str, known: Collection[int]) -> Iterator[Process]:
        """The container's loggers that an earlier daemon started."""
        scope, stderr = container_scope(container_id), self._ledger.pod_dir / _STDERR
        for record in self._ledger.state.live.values():
            fields = record.fields
            if record.scope == scope and fields.get("what") == _WHAT and "pid" in fields and record.n not in known:
                process = Process.adopt(record.n, fields["pid"], fields["start"], _WHAT, stderr)
                if process is not None:
                    yield process

    def _spawn(self, container_id: str, argv: list[str], fds: tuple[int, int, int]) -> Process:
        return spawn(
            self._ledger,
            replace(self._gate, fds=tuple(zip((3, 4, 5), fds, strict=True))),
            argv,
            what=_WHAT,
            stderr=self._ledger.pod_dir / _STDERR,
            pass_fds=fds,
            scope=container_scope(container_id),
            polite=True,
            grace_ms=GRACE_MS,
            env={"CONTAINER_ID": container_id, "CONTAINER_NAMESPACE": self._namespace},
        )

    async def _wait_ready(self, process: Process, fd: int, uri: str) -> None:
        try:
            async with asyncio.timeout(self._ready):
                ended = await supervise.first_of(readable(fd), process.wait())
                if process.exiting:  # an end closes the pipe too, and a moment before it is an end
                    await process.wait()
        except TimeoutError as error:
            raise DeadlineExceeded("start logger", uri, f"not ready within {self._ready:g} s") from error
        if ended or process.returncode:
            said = process.stderr_tail(500)
            raise InvalidArgument(
                "start logger", uri, said or f"it ended with {process.returncode} before it was ready"
            )


class _Pipe:
    """Two ends, closed by ``ends`` unless it is told to forget them."""

    def __init__(self, read: int, write: int) -> None:
        self.read, self.write = read, write

    @classmethod
    def make(cls, ends: ExitStack) -> "_Pipe":
        pipe = cls(*_clear_pipe())
        os.set_blocking(pipe.write, False)
        ends.callback(os.close, pipe.read)
        ends.callback(os.close, pipe.write)
        return pipe


def _clear_pipe() -> Iterator[int]:
    try:
        low = os.pipe2(os.O_CLOEXEC)
    except OSError as error:
        raise HostFailed("start logger", "pipe", error.strerror or "") from error
    for fd in low:
        yield fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _CLEAR)
        os.close(fd)


def arguments(uri: str) -> list[str]:
    """The command of a ``binary://`` URI: its path, then each key and, where it has one, its value.

    :raises InvalidArgument: no absolute path
    """
    parts = urlsplit(uri)
    path = Path(unquote(parts.path))
    if not path.is_absolute() or parts.netloc:
        raise InvalidArgument("start logger", uri, "no absolute path", hint="binary:///path/to/program?key=value")
    words = [str(path)]
    for key, value in parse_qsl(parts.query, keep_blank_values=True):
        words += [key, value] if value else [key]
    return words
