"""The virtio-serial handshake: whatever stands before the answer, not a byte behind it."""

import asyncio
import contextlib
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kata_shimd.errors import DeadlineExceeded, VmFailed
from kata_shimd.vm import dial, sockets

SECRET = bytes(range(32))
SESSION = b"0123456789abcdef"
ANSWER = dial.ACK + SESSION


async def shake(host, *, interval=10.0, timeout=5.0):
    async with asyncio.timeout(timeout):
        await dial.handshake(host, SECRET, SESSION, interval=interval)


def test_hello_is_as_the_contract_says(pair, run):
    async def body():
        host, guest = pair()
        guest.send(ANSWER)
        await shake(host)
        return guest.recv(1000)

    assert run(body()) == b"KATA-SHIMD-HELO\n" + SECRET + SESSION


def test_not_a_byte_behind_the_answer_is_taken(pair, run):
    async def body():
        host, guest = pair()
        guest.send(b"old bytes" + ANSWER + b"ttrpc frame")
        await shake(host)
        return host.recv(1000)

    assert run(body()) == b"ttrpc frame"


@settings(max_examples=60, deadline=None)
@given(before=st.binary(max_size=100), behind=st.binary(min_size=1, max_size=40), cuts=st.sets(st.integers(0, 170)))
def test_the_answer_is_found_however_it_is_cut(before, behind, cuts):
    """A read of virtio-serial may end anywhere (`host.md`)."""

    async def body(host, guest):
        host.setblocking(False)
        stream = before + ANSWER + behind
        ends = [*sorted(cut for cut in cuts if cut < len(stream)), len(stream)]
        async with asyncio.TaskGroup() as group:
            shaking = group.create_task(shake(host))
            start = 0
            for end in ends:
                guest.send(stream[start:end]) if end > start else None
                start = end
                await asyncio.sleep(0)
            await shaking
        return host.recv(1000, socket.MSG_DONTWAIT)

    with contextlib.ExitStack() as stack:
        ends = [stack.enter_context(end) for end in socket.socketpair()]
        assert asyncio.run(body(*ends)) == behind


def test_an_answer_to_another_session_is_thrown_away(pair, run):
    async def body():
        host, guest = pair()
        guest.send(dial.ACK + b"f" * 16 + dial.ACK[:7] + ANSWER + b"x")
        await shake(host)
        return host.recv(10)

    assert run(body()) == b"x"


def test_hello_is_repeated_until_the_answer_comes(pair, run):
    async def body():
        host, guest = pair()
        async with asyncio.TaskGroup() as group:
            shaking = group.create_task(shake(host, interval=0.005))
            heard = b""
            while heard.count(dial.HELLO) < 3:
                await asyncio.sleep(0.001)
                with contextlib.suppress(BlockingIOError):
                    heard += guest.recv(1000)
            guest.send(ANSWER)
            await shaking
        return heard

    assert run(body()).startswith((dial.HELLO + SECRET + SESSION) * 3)


def test_a_guest_that_reads_nothing_blocks_nobody(pair, run):
    async def body():
        host, guest = pair()
        with contextlib.suppress(BlockingIOError):
            while True:
                host.send(b"x" * 4096)
        guest.send(ANSWER)
        await shake(host)

    run(body())


def test_garbage_for_ever_ends_at_the_deadline(tmp_path, run):
    async def body():
        server = sockets.listen(tmp_path / "agent.sock")
        server.settimeout(5)
        dialling = dial.dial(tmp_path / "agent.sock", SECRET, interval=0.01, timeout=0.1)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(fails(dialling))
            await asyncio.sleep(0)
            with server, server.accept()[0] as guest:
                guest.setblocking(False)
                while not task.done():
                    with contextlib.suppress(BlockingIOError, BrokenPipeError):
                        guest.send(b"K" * 1000)
                    await asyncio.sleep(0.001)
        return task.result()

    error = run(body())
    assert isinstance(error, DeadlineExceeded)
    assert "agent.sock: no answer in 0.1 s" in str(error)


async def fails(work):
    with pytest.raises(Exception) as failure:
        await work
    return failure.value


def test_a_channel_that_closes_is_no_timeout(pair, run):
    async def body():
        host, guest = pair()
        guest.close()
        return await fails(shake(host))

    assert isinstance(run(body()), VmFailed)
