"""The other end of `attach`: finds the pod's socket, has it listen, and speaks the session's lines. For commands and tests."""

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from kata_shimd.debug.attach import SOCKET
from kata_shimd.debug.pods import DAEMON, Phase, Pod
from kata_shimd.errors import FailedPrecondition, HostFailed, Unavailable

#: For the daemon to run its signal handler.
ANSWER_SECONDS: Final = 5.0
_AGAIN_SECONDS: Final = 0.02
_CHUNK: Final = 1 << 16


class Connection:
    """A session with a daemon's interpreter."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._received = bytearray()

    def run(self, source: str, say: Callable[[str], None]) -> bool:
        """Run statements; what they print is said as it comes. True when nothing was raised."""
        self._send({"do": "run", "source": source})
        return self.finish(say)

    def stacks(self, say: Callable[[str], None]) -> None:
        """What every thread and task does; the loop need not turn."""
        self._send({"do": "stacks"})
        self.finish(say)

    def interrupt(self) -> None:
        """Cancel what the running statement awaits; `finish` still gets its end."""
        self._send({"do": "interrupt"})

    def complete(self, text: str) -> list[str]:
        self._send({"do": "complete", "text": text})
        return next((list(reply["completions"]) for reply in self._replies() if "completions" in reply), [])

    def close(self) -> None:
        self._sock.close()

    def finish(self, say: Callable[[str], None]) -> bool:
        """Wait for the end of what runs.

        :raises Unavailable: the daemon has gone
        """
        for reply in self._replies():
            if "done" in reply:
                return bool(reply["done"])
            say(str(reply.get("say", "")))
        raise Unavailable("attach", "daemon", "it has ended, or ended the session")

    def _send(self, request: dict[str, Any]) -> None:
        try:
            self._sock.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise Unavailable("attach", "daemon", "it has ended, or ended the session") from error

    def _replies(self) -> Iterator[dict[str, Any]]:
        while True:
            line, found, rest = self._received.partition(b"\n")
            if found:
                self._received = rest
                yield json.loads(line)
            elif data := self._receive():
                self._received += data
            else:
                return

    def _receive(self) -> bytes:
        with suppress(ConnectionResetError):
            return self._sock.recv(_CHUNK)
        return b""


def connect(pod: Pod) -> Connection:
    """Have the pod's daemon listen, and connect.

    :raises FailedPrecondition: no daemon runs, or its configuration allows no attaching
    :raises HostFailed: we may not
    :raises Unavailable: the daemon runs no Python code, not even for a signal
    """
    daemon = pod.process(DAEMON)
    if daemon is None or not daemon.alive or pod.phase not in (Phase.STARTING, Phase.RUNNING):
        raise FailedPrecondition("attach", pod.name, f"the pod is {pod.phase}", hint="kata-shimd why tells its story")
    path = pod.directory / SOCKET
    return Connection(_dial(path) or _have_it_listen(pod, daemon.pid, path))


def _dial(path: Path) -> socket.socket | None:
    """None when the socket does not listen yet."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(str(path))
    except ConnectionRefusedError:
        sock.close()
        return None
    except FileNotFoundError as error:
        sock.close()
        hint = "set shimd.attach in the configuration of the next pod"
        raise FailedPrecondition("attach", str(path), "the pod's configuration allows none", hint=hint) from error
    except OSError as error:
        sock.close()
        raise HostFailed("attach", str(path), error.strerror or "", hint="run as root") from error
    return sock


def _have_it_listen(pod: Pod, pid: int, path: Path) -> socket.socket:
    """Nothing tells when a socket begins to listen, so it is tried; and asked for again, for a daemon that has just begun does
    not hear it."""
    deadline = time.monotonic() + ANSWER_SECONDS
    with _opened(pid) as daemon:
        while time.monotonic() < deadline and _ask(daemon, pid):
            time.sleep(_AGAIN_SECONDS)
            if (sock := _dial(path)) is not None:
                return sock
    raise Unavailable(
        "attach",
        pod.name,
        f"its daemon ran no Python code for {ANSWER_SECONDS:g} s",
        hint="SIGUSR1 writes its stacks to daemon.stderr all the same: kata-shimd logs --daemon",
    )


@contextmanager
def _opened(pid: int) -> Iterator[int]:
    """A pidfd: what is sent several times must never reach somebody who got the number later."""
    try:
        fd = os.pidfd_open(pid)
    except OSError as error:
        raise _unasked(pid, error) from error
    try:
        yield fd
    finally:
        os.close(fd)


def _ask(daemon: int, pid: int) -> bool:
    """False when it has ended."""
    try:
        signal.pidfd_send_signal(daemon, signal.SIGUSR2)
    except ProcessLookupError:
        return False
    except OSError as error:
        raise _unasked(pid, error) from error
    return True


def _unasked(pid: int, error: OSError) -> HostFailed:
    return HostFailed("attach", f"process {pid}", error.strerror or "", hint="run as root")
