"""vsock and hybrid vsock: context ids, and dialling a port of the guest.

Neither has a handshake of ours: a connection is a session.
"""

import asyncio
import errno
import fcntl
import os
import secrets
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from kata_shimd.errors import DeadlineExceeded, HostFailed, ResourceExhausted, VmFailed
from kata_shimd.vm.spec import Vsock

AGENT_PORT: Final = 1024
VHOST_VSOCK: Final = Path("/dev/vhost-vsock")
#: linux/vhost.h: _IOW(0xAF, 0x60, __u64).
VHOST_VSOCK_SET_GUEST_CID: Final = 0x4008AF60

#: 0 to 2 are the hypervisor, the local loop and the host; the last is "any".
_FIRST_CID: Final = 3
_LAST_CID: Final = 0xFFFF_FFFE
_ATTEMPTS: Final = 64

#: Between two attempts to reach a guest that does not listen yet: a refusal costs nothing, a busy loop does (`kata.md` §11).
_RETRY_SECONDS: Final = 0.05
#: Refusals that mean "not yet": no listener, no driver in the guest, reset while it comes up, no socket of a backend yet.
_NOT_YET: Final = frozenset(
    {
        errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE, errno.ENODEV, errno.ETIMEDOUT, errno.EHOSTUNREACH,
        errno.ENOENT,
    }
)  # fmt: skip

#: The answer to CONNECT is "OK <port>\n"; more than this is not one.
_MAX_ANSWER: Final = 64

Ioctl = Callable[[int, int, bytes], object]


def claim(device: Path = VHOST_VSOCK, ioctl: Ioctl = fcntl.ioctl) -> Vsock:
    """Open vhost-vsock and claim a context id nobody has; the kernel is the judge. The caller owns the fd.

    :raises HostFailed: the device does not open, or refuses
    :raises ResourceExhausted: every id that was tried is taken
    """
    try:
        fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        hint = "load the module vhost_vsock, or set shimd.agent_transport to virtio-serial"
        raise HostFailed("open vhost-vsock", str(device), error.strerror or "", hint=hint) from error
    try:
        return Vsock(cid=_claim_cid(fd, device, ioctl), vhost_fd=fd)
    except BaseException:
        os.close(fd)
        raise


def _claim_cid(fd: int, device: Path, ioctl: Ioctl) -> int:
    for _ in range(_ATTEMPTS):
        cid = _FIRST_CID + secrets.randbelow(_LAST_CID - _FIRST_CID + 1)
        try:
            ioctl(fd, VHOST_VSOCK_SET_GUEST_CID, struct.pack("=Q", cid))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                continue
            raise HostFailed("claim vsock context id", str(device), error.strerror or "") from error
        return cid
    raise ResourceExhausted("claim vsock context id", str(device), f"{_ATTEMPTS} random ids are all taken")


async def dial(cid: int, *, port: int = AGENT_PORT, timeout: float) -> socket.socket:
    """Connect to the guest's port, again and again until it listens.

    :raises DeadlineExceeded: it never did; the cause is the last refusal
    :raises HostFailed: this host has no vsock
    """
    return await _until(lambda: connect(_vsock_socket(cid), (cid, port)), f"vsock {cid}:{port}", timeout)


async def dial_hybrid(path: Path, *, port: int = AGENT_PORT, timeout: float) -> socket.socket:
    """Reach a port of the guest through a unix socket that speaks ``CONNECT <port>`` (`kata.md` §3.1).

    :raises DeadlineExceeded: no OK in time
    :raises VmFailed: the socket refuses for good
    """
    return await _until(lambda: _hybrid(path, port), f"{path} port {port}", timeout)


async def _until(attempt: Callable[[], Awaitable[socket.socket]], where: str, timeout: float) -> socket.socket:
    """Repeat ``attempt`` before the deadline while it is only too early."""
    last = "no answer"
    try:
        async with asyncio.timeout(timeout):
            while True:
                try:
                    return await attempt()
                except OSError as error:
                    if error.errno not in _NOT_YET:
                        raise VmFailed("dial guest", where, error.strerror or "") from error
                    last = error.strerror or ""
                await asyncio.sleep(_RETRY_SECONDS)
    except TimeoutError as error:
        raise DeadlineExceeded("dial guest", where, f"{last} for {timeout:g} s") from error


def _vsock_socket(cid: int) -> socket.socket:
    try:
        return socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    except OSError as error:
        raise HostFailed("open vsock", str(cid), error.strerror or "", hint="load the module vsock") from error


async def connect(client: socket.socket, address: object) -> socket.socket:
    """A non-blocking connect that any event loop can do: uvloop's own knows no AF_VSOCK address.

    :raises OSError: refused; the socket is closed
    """
    client.setblocking(False)
    try:
        number = client.connect_ex(address)  # type: ignore[arg-type]
        if number == errno.EINPROGRESS:
            await writable(client)
            number = client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            raise OSError(number, os.strerror(number))
    except BaseException:
        client.close()
        raise
    return client


async def writable(sock: socket.socket) -> None:
    """Wait until ``sock`` can be written, or has failed."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_writer(sock, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_writer(sock)


async def readable(sock: socket.socket) -> None:
    """Wait until ``sock`` can be read, has ended or has failed."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(sock, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(sock)


async def _hybrid(path: Path, port: int) -> socket.socket:
    client = await connect(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), str(path))
    try:
        client.send(b"CONNECT %d\n" % port)
        answer = await _line(client)
        if not answer.startswith(b"OK"):
            raise ConnectionResetError(errno.ECONNRESET, f"answered {answer[:_MAX_ANSWER]!r}")
    except BaseException:
        client.close()
        raise
    return client


async def _line(client: socket.socket) -> bytes:
    """Read one line and not a byte more: what follows is the agent's."""
    line = b""
    while len(line) < _MAX_ANSWER:
        await readable(client)
        byte = client.recv(1)
        if byte in (b"", b"\n"):
            break
        line += byte
    return line
