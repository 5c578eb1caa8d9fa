"""Echo over TCP and UDP, both families: a server on the test's bridge, and a client that checks what comes back.

Run as a program inside the private host: ``echo.py serve PORT`` or ``echo.py ask tcp|udp ADDRESS PORT BYTES``.
"""

import secrets
import selectors
import socket
import sys
from typing import Final

#: A datagram may be lost while a neighbour is being looked for.
TRIES: Final = 10
WAIT_SECONDS: Final = 30.0
_CHUNK: Final = 1 << 16


def serve(port: int) -> None:
    """Echo until killed."""
    selector = selectors.DefaultSelector()
    tcp = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
    udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    udp.bind(("::", port))
    for listening in (tcp, udp):
        selector.register(listening, selectors.EVENT_READ)
    print("ready", flush=True)
    while True:
        for key, _ in selector.select():
            _answer(key.fileobj, tcp, udp, selector)


def _answer(ready: object, tcp: socket.socket, udp: socket.socket, selector: selectors.BaseSelector) -> None:
    if ready is tcp:
        selector.register(tcp.accept()[0], selectors.EVENT_READ)
    elif ready is udp:
        data, sender = udp.recvfrom(_CHUNK)
        udp.sendto(data, sender)
    else:
        assert isinstance(ready, socket.socket)
        if data := ready.recv(_CHUNK):
            ready.sendall(data)
        else:
            selector.unregister(ready)
            ready.close()


def ask(kind: str, address: str, port: int, size: int) -> None:
    """Send random bytes and compare what comes back. :raises AssertionError: it is not the same, or nothing"""
    wanted = secrets.token_bytes(size)
    got = _tcp(address, port, wanted) if kind == "tcp" else _udp(address, port, wanted)
    assert got == wanted, f"{len(got)} bytes came back of {size}"


def _tcp(address: str, port: int, data: bytes) -> bytes:
    got = b""
    with socket.create_connection((address, port), timeout=WAIT_SECONDS) as connection:
        for start in range(0, len(data), _CHUNK):
            part = data[start : start + _CHUNK]
            connection.sendall(part)
            while len(got) < start + len(part) and (more := connection.recv(_CHUNK)):
                got += more
    return got


def _udp(address: str, port: int, data: bytes) -> bytes:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sender:
        sender.settimeout(WAIT_SECONDS / TRIES)
        for _ in range(TRIES):
            sender.sendto(data, (address, port))
            try:
                return sender.recv(_CHUNK)
            except TimeoutError:
                continue
    return b""


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]))
    ask(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
