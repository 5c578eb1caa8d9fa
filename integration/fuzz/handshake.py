"""Fuzz of the handshake on the guest's channel: what stands before the ACK, and what comes in place of it.

    python -m integration.fuzz.handshake [--count 1000000] [--seed 1]

Permitted: nothing. Also required: the ACK with our session is found exactly where it first stands, however the bytes are split, and
not a byte behind it is read.
"""

import random
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from integration.fuzz import mutate
from integration.fuzz.engine import Target, main
from kata_shimd.vm.dial import ACK, HELLO, SESSION_LENGTH, _Answer

_SESSION: Final = bytes(range(SESSION_LENGTH))
_WANTED: Final = ACK + _SESSION
_PARTS: Final = (
    _WANTED, ACK, _SESSION, ACK + _SESSION[:-1], ACK + bytes(SESSION_LENGTH), ACK[:-1], _WANTED[:-1], HELLO, b"K", b"\n",
    ACK * 3, b"\0\0\0\x10\0\0\0\1\2\0",
)  # fmt: skip
Input = list[bytes]


def make(rng: random.Random) -> Input:
    data = b"".join(rng.choice(_PARTS) for _ in range(rng.randrange(8)))
    return mutate.pieces(rng, mutate.data(rng, data) if rng.random() < 0.5 else data, most=12)


def check(given: Input) -> None:
    """One socket pair an input: what an answer has read must not be the next one's."""
    ours, guest = socket.socketpair()
    with ours, guest:
        ours.setblocking(False)
        found, sent = False, b""
        answer = _Answer(_WANTED)
        for piece in given:
            guest.sendall(piece)
            sent += piece
            if not found:
                while not found and piece:
                    found = answer.take(ours)
                    if not found and not _waiting(ours):
                        break
        at = sent.find(_WANTED)
        assert found == (at >= 0), "found what is not there, or missed what is"
        rest = _rest(ours)
        assert rest == (sent[at + len(_WANTED) :] if found else b""), "it read too much, or too little"


def _waiting(sock: socket.socket) -> bool:
    try:
        return bool(sock.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False


def _rest(sock: socket.socket) -> bytes:
    try:
        return sock.recv(1 << 20)
    except BlockingIOError:
        return b""


@contextmanager
def opened() -> Iterator[Callable[[Any], None]]:
    yield check


TARGET: Final = Target("handshake", (), make, opened)

if __name__ == "__main__":
    main(TARGET)
