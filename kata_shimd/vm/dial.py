"""The virtio-serial channel to the agent: a session handshake on a channel that is no connection.

Bytes of an earlier session, cut anywhere, may stand before ours, so everything up to the ACK with our session is thrown away,
and not a byte behind it is read here: that is ttrpc's (`docs/contracts.md`, "Guest channel").
"""

import asyncio
import secrets
import socket
from pathlib import Path
from typing import Final

from kata_shimd.errors import DeadlineExceeded, VmFailed
from kata_shimd.vm import sockets
from kata_shimd.vm.vsock import readable

HELLO: Final = b"KATA-SHIMD-HELO\n"
ACK: Final = b"KATA-SHIMD-ACK0\n"
SECRET_LENGTH: Final = 32
SESSION_LENGTH: Final = 16
_PEEK: Final = 64 << 10


def new_secret() -> bytes:
    return secrets.token_bytes(SECRET_LENGTH)


async def dial(path: Path, secret: bytes, *, interval: float, timeout: float) -> socket.socket:
    """Connect to ``path`` and greet the guest until it answers.

    :param interval: seconds between two greetings
    :returns: a non-blocking socket whose next byte is the agent's
    :raises DeadlineExceeded: no answer in ``timeout`` seconds
    :raises VmFailed: the channel was closed
    """
    connected = sockets.connect(path)
    try:
        async with asyncio.timeout(timeout):
            await handshake(connected, secret, secrets.token_bytes(SESSION_LENGTH), interval=interval)
    except TimeoutError as error:
        connected.close()
        raise DeadlineExceeded(
            "dial agent", str(path), f"no answer in {timeout:g} s", hint="see the guest's console: kata-shimd why"
        ) from error
    except BaseException:
        connected.close()
        raise
    return connected


async def handshake(connected: socket.socket, secret: bytes, session: bytes, *, interval: float) -> None:
    """Send HELLO every ``interval`` seconds until ACK with ``session`` has been read.

    The guest takes a repeated HELLO of the same session for the same, so a late one does no harm.
    """
    hello, answer = HELLO + secret + session, _Answer(ACK + session)
    while True:
        _greet(connected, hello)
        try:
            async with asyncio.timeout(interval):
                while not answer.take(connected):
                    await readable(connected)
            return
        except TimeoutError:
            continue


def _greet(connected: socket.socket, hello: bytes) -> None:
    """One HELLO. A full channel means that the guest has earlier ones to read; 64 bytes are taken whole or not at all."""
    try:
        connected.send(hello)
    except BlockingIOError:
        pass
    except OSError as error:
        raise VmFailed("greet agent", "", error.strerror or "") from error


class _Answer:
    """Looks for an answer in the stream and consumes it, and nothing behind it."""

    def __init__(self, wanted: bytes) -> None:
        self._wanted = wanted
        #: The end of what was thrown away: the answer may have begun in it.
        self._before = b""

    def take(self, connected: socket.socket) -> bool:
        """Read what there is up to the answer; whether it came."""
        try:
            seen = connected.recv(_PEEK, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError as error:
            raise VmFailed("greet agent", "", error.strerror or "") from error
        if not seen:
            raise VmFailed("greet agent", "", "QEMU closed the channel")
        text = self._before + seen
        found = text.find(self._wanted)
        end = found + len(self._wanted) - len(self._before) if found >= 0 else len(seen)
        _consume(connected, end)
        self._before = text[-(len(self._wanted) - 1) :]
        return found >= 0


def _consume(connected: socket.socket, count: int) -> None:
    """Take ``count`` bytes that a peek has shown to be there."""
    while count:
        count -= len(connected.recv(count))
