"""vsock and hybrid vsock against listeners of other families: what is ours is retry, deadline and the CONNECT line."""

import asyncio
import errno
import os
import socket
import struct

import pytest

from kata_shimd.errors import DeadlineExceeded, HostFailed, ResourceExhausted, VmFailed
from kata_shimd.vm import sockets, vsock


class Kernel:
    """VHOST_VSOCK_SET_GUEST_CID: refuses the first ``taken`` ids, then takes one."""

    def __init__(self, taken=0, error=errno.EADDRINUSE):
        self.taken, self.error, self.tried = taken, error, []

    def __call__(self, fd, request, argument):
        assert request == 0x4008AF60
        self.tried.append(struct.unpack("=Q", argument)[0])
        if len(self.tried) <= self.taken:
            raise OSError(self.error, os.strerror(self.error))


def test_an_id_that_is_taken_is_tried_no_further():
    kernel = Kernel(taken=3)
    claimed = vsock.claim(os.devnull, kernel)
    os.close(claimed.vhost_fd)
    assert claimed.cid == kernel.tried[-1]
    assert len(set(kernel.tried)) == 4
    assert all(3 <= cid < 0xFFFFFFFF for cid in kernel.tried)


def test_every_id_taken(descriptors):
    before = descriptors()
    with pytest.raises(ResourceExhausted, match="taken"):
        vsock.claim(os.devnull, Kernel(taken=10_000))
    assert descriptors() == before


def test_a_device_that_refuses_is_not_asked_again(descriptors):
    before, kernel = descriptors(), Kernel(taken=9, error=errno.ENOTTY)
    with pytest.raises(HostFailed):
        vsock.claim(os.devnull, kernel)
    assert (descriptors(), len(kernel.tried)) == (before, 1)


def test_no_device_says_what_to_do(tmp_path):
    with pytest.raises(HostFailed, match=r"vhost_vsock.*virtio-serial"):
        vsock.claim(tmp_path / "vhost-vsock", Kernel())


def test_dialling_waits_for_a_listener(tmp_path, run):
    """A guest that comes up refuses at first (`kata.md` §3.1): the caller only sees the connection."""
    path = tmp_path / "late.sock"

    async def listen_late():
        await asyncio.sleep(0.12)
        return sockets.listen(path)

    async def body():
        async with asyncio.TaskGroup() as group:
            late = group.create_task(listen_late())
            connected = await vsock._until(lambda: vsock.connect(socket.socket(socket.AF_UNIX), str(path)), "x", 5)
        with late.result() as server, server.accept()[0] as accepted, connected:
            accepted.send(b"hello")
            await vsock.readable(connected)
            return connected.recv(10)

    assert run(body()) == b"hello"


def test_nobody_ever_listens(tmp_path, run, descriptors):
    path = str(tmp_path / "never.sock")

    async def body():
        with pytest.raises(DeadlineExceeded, match=r"cid: No such file.*for 0.15 s"):
            await vsock._until(lambda: vsock.connect(socket.socket(socket.AF_UNIX), path), "cid", 0.15)

    before = descriptors()
    run(body())
    assert descriptors() == before


def test_a_refusal_for_good_is_not_repeated(run):
    attempts = []

    async def attempt():
        attempts.append(1)
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    async def body():
        with pytest.raises(VmFailed, match="Permission denied"):
            await vsock._until(attempt, "cid", 5)

    run(body())
    assert len(attempts) == 1


def test_a_connect_that_takes_time_is_waited_for(run):
    """The EINPROGRESS path, which a unix socket never takes."""

    async def body():
        with socket.create_server(("127.0.0.1", 0)) as server:
            connected = await vsock.connect(socket.socket(), server.getsockname())
            peer, _ = server.accept()
            with connected, peer:
                return connected.getpeername() == server.getsockname()

    assert run(body())


def test_a_connect_that_is_refused_late(run):
    async def body():
        with socket.create_server(("127.0.0.1", 0)) as server:
            address = server.getsockname()
        with pytest.raises(ConnectionRefusedError):
            await vsock.connect(socket.socket(), address)

    run(body())


async def hybrid(path, answers):
    """A backend that gives each connection the next of ``answers``; what it was asked."""
    asked = []

    async def serve(reader, writer):
        asked.append(await reader.readline())
        answer = answers.pop(0)
        if answer:
            writer.write(answer)
            await writer.drain()
        writer.close()

    async with await asyncio.start_unix_server(serve, path):
        connected = await vsock.dial_hybrid(path, timeout=5)
        with connected:
            await vsock.readable(connected)
            return asked, connected.recv(100)


def test_hybrid_takes_the_ok_line_and_nothing_more(tmp_path, run):
    asked, rest = run(hybrid(tmp_path / "h.sock", [b"OK 1073741824\nttrpc"]))
    assert (asked, rest) == ([b"CONNECT 1024\n"], b"ttrpc")


@pytest.mark.parametrize("refusal", [b"", b"\n", b"ERR nobody\n", b"x" * 1000])
def test_hybrid_tries_again_when_the_guest_does_not_listen_yet(tmp_path, run, refusal):
    asked, rest = run(hybrid(tmp_path / "h.sock", [refusal, refusal, b"OK 7\nnow"]))
    assert (len(asked), rest) == (3, b"now")
