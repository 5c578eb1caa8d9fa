"""One attached person: what comes and goes on the connection, in a thread of its own; statements run in the daemon's loop.

One JSON object a line each way, at most MAX_LINE bytes:

    {"do": "run", "source": "..."}        {"say": "..."} as it is printed, then {"done": true or false}
    {"do": "complete", "text": "pod.co"}  {"completions": [...]}
    {"do": "stacks"}                      {"say": "..."}, {"done": true}; from the thread, whatever the loop does
    {"do": "interrupt"}                   cancels the statement; its own {"done": false} follows

Every session is logged and journalled.
"""

import asyncio
import json
import logging
import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from select import POLLIN, poll
from typing import Any, Final

from kata_shimd.debug.attach import Daemon
from kata_shimd.debug.interpreter import Interpreter, route_output, stacks
from kata_shimd.debug.people import Text

_log = logging.getLogger(__name__)

MAX_LINE: Final = 4 << 20
#: More than this is not kept for a person who does not read.
MAX_REPLIES: Final = 10_000
#: A statement that the loop has not begun after this long waits for something that blocks the loop.
PATIENCE: Final = 1.0


class Session:
    """One connection, served by a thread of its own; replies come from the loop too, through a queue."""

    def __init__(self, connection: socket.socket, pid: int, uid: int, daemon: Daemon) -> None:
        self._connection, self._pid, self._uid, self._daemon = connection, pid, uid, daemon
        self._note = daemon.note
        names = {"stacks": lambda: Text(stacks(daemon.loop)), **daemon.names()}
        self._interpreter = Interpreter(names)
        self._replies: deque[Mapping[str, Any]] = deque()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._task: asyncio.Task[None] | None = None
        self._begun = True
        self._closed = False

    def serve(self) -> None:
        """Until the other side hangs up."""
        route_output()
        _log.warning("attach: process %d of uid %d has the interpreter", self._pid, self._uid)
        self._note("attached", pid=self._pid, uid=self._uid)  # from here, for the loop may never turn again
        try:
            self._loop()
        except (OSError, ValueError) as error:
            _log.warning("attach: process %d: %s", self._pid, error)
        finally:
            self._end()

    def _end(self) -> None:
        self._in_loop(self._close)
        self._connection.close()
        _log.warning("attach: process %d has left", self._pid)
        self._note("detached", pid=self._pid, uid=self._uid)

    def _in_loop(self, call: Callable[[], object]) -> None:
        """The daemon's state is the loop's alone."""
        with suppress(RuntimeError):  # the loop has been closed: the daemon is about to end
            self._daemon.loop.call_soon_threadsafe(call)

    # The thread

    def _loop(self) -> None:
        waiting = poll()
        waiting.register(self._connection, POLLIN)
        waiting.register(self._wake, POLLIN)
        received = bytearray()
        while True:
            if not waiting.poll(None if self._begun else PATIENCE * 1000) and not self._begun:
                self._say_blocked()
            self._send_replies()
            if _readable(self._connection) and not self._receive(received):
                return

    def _receive(self, received: bytearray) -> bool:
        """Take what has come; False at the end.

        :raises ValueError: a line that is too long, or no request
        """
        data = self._connection.recv(1 << 16)
        received += data
        while (end := received.find(b"\n")) >= 0:
            self._do(json.loads(bytes(received[:end])))
            del received[: end + 1]
        if len(received) > MAX_LINE:
            raise ValueError("a line that is too long")
        return bool(data)

    def _do(self, request: Mapping[str, Any]) -> None:
        match request:
            case {"do": "run", "source": str(source)}:
                self._begun = False
                self._in_loop(lambda: self._begin(source))
            case {"do": "complete", "text": str(text)}:
                self._reply(completions=self._interpreter.complete(text))
            case {"do": "stacks"}:
                self._reply(say=self._stacks())
                self._reply(done=True)
            case {"do": "interrupt"}:
                self._in_loop(self._interrupt)
            case _:
                raise ValueError("not a request")

    def _stacks(self) -> str:
        return stacks(self._daemon.loop, spared=threading.get_ident())

    def _say_blocked(self) -> None:
        self._begun = True
        self._reply(
            say=f"The loop has not turned for {PATIENCE:g} s; the statement waits. It is in:\n\n{self._stacks()}"
        )

    def _send_replies(self) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        while self._replies:
            self._connection.sendall(json.dumps(self._replies.popleft()).encode() + b"\n")

    # Any thread

    def _reply(self, **fields: Any) -> None:
        if self._closed or ("say" in fields and len(self._replies) > MAX_REPLIES):
            return
        self._replies.append(fields)
        os.eventfd_write(self._wake, 1)

    # The loop

    def _begin(self, source: str) -> None:
        self._begun = True
        self._task = self._daemon.group.create_task(self._run(source), name=f"attached {self._pid}")

    async def _run(self, source: str) -> None:
        done = False
        try:
            done = await self._interpreter.run(source, lambda text: self._reply(say=text))
        finally:
            self._reply(done=done)

    def _interrupt(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _close(self) -> None:
        """The statement's replies come in the loop, so here none can come between."""
        self._interrupt()
        self._closed = True
        os.close(self._wake)


def _readable(sock: socket.socket) -> bool:
    waiting = poll()
    waiting.register(sock, POLLIN)
    return bool(waiting.poll(0))
