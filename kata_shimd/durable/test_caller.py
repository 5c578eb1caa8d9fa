"""Calls that outlive their client: which are taken up, what is kept of them, and what a guest cannot do to that."""

import asyncio
import gc
import os
import socket

import pytest

from kata_shimd.durable import caller as module
from kata_shimd.durable.caller import DurableClient, operation
from kata_shimd.durable.memory import new
from kata_shimd.durable.tape import HEAD, Tape
from kata_shimd.errors import Code, Unavailable
from kata_shimd.ttrpc import envelope, frames
from kata_shimd.ttrpc.envelope import Response


class Line:
    """A channel, its journal, and the guest's end of it."""

    def __init__(self):
        self.ours, self.guest = socket.socketpair()
        self.guest.settimeout(5)
        self.journal = new(HEAD)
        self.decoder = frames.FrameDecoder()

    def client(self, consumed=(), lost=None):
        """One more daemon's client."""
        return DurableClient(
            self.ours.dup(),
            Tape(os.dup(self.journal), point=lambda: None),
            barrier=lambda: None,
            key_of=lambda _method, payload: payload,
            consumed=consumed,
            on_lost=(lost if lost is not None else []).append,
        )

    def asked(self):
        """Requests that have arrived: stream, method, payload."""
        found = self.decoder.feed(self.guest.recv(1 << 20))
        requests = [(frame.stream, envelope.decode_request(frame.data)) for frame in found]
        return [(stream, request.method, request.payload) for stream, request in requests]

    def answer(self, stream, payload):
        self.guest.sendall(frames.pack(stream, frames.RESPONSE, 0, envelope.encode_response(Response(None, payload))))

    def nothing_more(self):
        self.guest.setblocking(False)
        with pytest.raises(BlockingIOError):
            self.guest.recv(1)
        self.guest.settimeout(5)

    def close(self):
        self.ours.close()
        self.guest.close()
        os.close(self.journal)


@pytest.fixture
def line():
    made = Line()
    yield made
    made.close()


def die(client):
    """As SIGKILL: descriptors close, and nobody is told."""
    client._source.close()
    client._sink._idle()
    client._sock.detach()
    os.close(client._sink._fd)


async def begun(client, method, payload):
    task = asyncio.get_running_loop().create_task(client.call("s", method, payload))
    await asyncio.sleep(0.01)
    return task


async def test_a_call_under_way_is_taken_up(line):
    first = line.client()
    task = await begun(first, "Wait", b"x")
    assert line.asked() == [(1, "Wait", b"x")]
    die(first)
    task.cancel()
    second = line.client()
    task = await begun(second, "Wait", b"x")
    line.answer(1, b"ended")
    assert await task == b"ended"
    line.nothing_more()
    second.close()


async def test_an_answer_that_came_before_the_death_is_handed_over(line):
    first = line.client()
    task = await begun(first, "Read", b"x")
    line.asked()
    line.answer(1, b"bytes")
    assert await task == b"bytes"
    die(first)
    second = line.client()
    assert await second.call("s", "Read", b"x") == b"bytes"
    line.nothing_more()
    die(second)
    third = line.client(consumed=[1])
    task = await begun(third, "Read", b"x")
    assert line.asked() == [(3, "Read", b"x")], "its effect is on record: this is another read"
    task.cancel()
    third.close()


async def test_another_operation_asks_anew(line):
    first = line.client()
    token = operation.set("c1/7")
    task = await begun(first, "Signal", b"15")
    operation.reset(token)
    line.asked()
    line.answer(1, b"")
    await task
    die(first)
    second = line.client()
    token = operation.set("c1/9")
    task = await begun(second, "Signal", b"15")
    operation.reset(token)
    assert [(stream, method) for stream, method, _ in line.asked()] == [(3, "Signal")]
    task.cancel()
    second.close()


async def test_what_is_over_is_forgotten_and_what_is_not_is_not(line, monkeypatch):
    monkeypatch.setattr(module, "_FORGET_ABOVE", 10_000)
    monkeypatch.setattr(module, "_SETTLED_SECONDS", 0)
    first = line.client()
    waiting = await begun(first, "WaitProcess", b"for long")
    line.asked()
    for number in range(100):
        task = await begun(first, "ReadStdout", b"out") if number % 2 else await begun(first, "Stats", b"%d" % number)
        ((stream, _, _),) = line.asked()
        line.answer(stream, b"y" * 1000)
        await task
    assert first._tape.weight < 30_000
    die(first)
    waiting.cancel()
    second = line.client()
    task = await begun(second, "WaitProcess", b"for long")
    line.answer(1, b"ended")
    assert await task == b"ended"
    again = await begun(second, "Stats", b"new")
    ((stream, _, _),) = line.asked()
    assert stream == 203, "no number is given twice"
    again.cancel()
    second.close()


@pytest.mark.parametrize("on_record", [False, True], ids=["one after the other", "on record"])
async def test_deaths_add_nothing_to_what_is_kept(line, monkeypatch, on_record):
    """Of a stream's reads the last counts, and of those whose bytes are on record none does."""
    monkeypatch.setattr(module, "_FORGET_ABOVE", 10_000)
    used, weights = [], []
    for _ in range(20):
        client = line.client(consumed=used)
        for number in range(4):
            name = b"out %d" % len(used) if on_record else b"out"
            task = await begun(client, "ReadStdout", name)
            if number or on_record or not weights:
                ((stream, _, _),) = line.asked()
                used += [stream] if on_record else []
                line.answer(stream, b"y" * 5000)
            await task
        weights.append(client._tape.weight)
        die(client)
    assert max(weights) < 60_000, weights


class Talker:
    """A guest that has the end of a frame to send only when nobody asks for anything else."""

    def __init__(self, line):
        self._line = line
        self._rest = b""
        self._loop = asyncio.get_running_loop()
        self._later = None
        line.guest.setblocking(False)
        self._loop.add_reader(line.guest, self._asked)

    def _asked(self):
        for stream, _method, payload in self._line.asked():
            self._rest += frames.pack(
                stream, frames.RESPONSE, 0, envelope.encode_response(Response(None, payload * 1000))
            )
        self._send(self._rest[:-1])
        self._rest = self._rest[-1:]
        if self._later is not None:
            self._later.cancel()
        self._later = self._loop.call_later(0.02, self._end)

    def _end(self):
        self._send(self._rest)
        self._rest = b""

    def _send(self, data):
        assert self._line.guest.send(data) == len(data)

    def close(self):
        self._loop.remove_reader(self._line.guest)


async def test_a_journal_that_grows_while_frames_overlap_is_given_its_moment(line, monkeypatch):
    monkeypatch.setattr(module, "_FORGET_ABOVE", 10_000)
    monkeypatch.setattr(module, "_HOLD_ABOVE", 50_000)
    client, talker, weights = line.client(), Talker(line), []

    async def stream(name):
        for _ in range(60):
            assert await client.call("s", "ReadStdout", name) == name * 1000
            weights.append(client._tape.weight)

    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        for name in (b"a", b"b", b"c"):
            group.create_task(stream(name))
    talker.close()
    client.close()
    assert max(weights) < 60_000 < len(weights) * 1000


async def test_a_guest_that_never_ends_a_frame_is_given_up(line, monkeypatch):
    monkeypatch.setattr(module, "MAX_WEIGHT", 100_000)
    lost = []
    client = line.client(lost=lost)
    task = await begun(client, "Check", b"")
    line.asked()
    line.guest.setblocking(False)
    line.guest.send(frames.HEADER.pack(frames.MAX_DATA, 1, frames.RESPONSE, 0))
    for _ in range(100):
        try:
            line.guest.send(bytes(10_000))
        except (BlockingIOError, BrokenPipeError):
            pass
        await asyncio.sleep(0.001)
        if lost:
            break
    with pytest.raises(Unavailable, match="no room left"):
        await task


@pytest.mark.parametrize("refused", [False, True], ids=["lost", "refused"])
async def test_what_became_of_a_call_that_nobody_takes_up_is_no_news(line, refused):
    """Its failure is nobody's: the loop does not complain that it was not looked at."""
    complaints = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: complaints.append(context["message"]))
    first = line.client()
    task = await begun(first, "Stats", b"x")
    line.asked()
    die(first)
    task.cancel()
    if refused:
        status = envelope.Status(Code.NOT_FOUND, "no", ())
        line.guest.sendall(frames.pack(1, frames.RESPONSE, 0, envelope.encode_response(Response(status))))
    lost = []
    second = line.client(lost=lost)
    line.guest.shutdown(socket.SHUT_RDWR)
    async with asyncio.timeout(5):
        while not lost:  # noqa: ASYNC110 - it is the loop that sees the end of the connection
            await asyncio.sleep(0)
    del second
    gc.collect()
    assert complaints == []


HUGE = frames.HEADER.pack(0xFFFFFFF0, 1, frames.RESPONSE, 0)


async def test_a_guest_that_begins_a_frame_too_large_is_given_up_at_its_header(line):
    """Nothing of it is kept, and no byte is looked at twice."""
    lost = []
    client = line.client(lost=lost)
    task = await begun(client, "Check", b"")
    line.asked()
    line.guest.sendall(HUGE)
    with pytest.raises(Unavailable, match="a frame of 4294967280 bytes"):
        await task
    assert len(lost) == 1


async def test_a_later_daemon_gives_it_up_too(line):
    """The one before was killed when it had the header, and some of what followed."""
    first = line.client()
    task = await begun(first, "Check", b"")
    line.asked()
    die(first)
    task.cancel()
    tape = Tape(os.dup(line.journal), point=lambda: None)
    line.guest.sendall(HUGE + bytes(10_000))
    tape.receive(line.ours)
    tape.close()
    lost = []
    second = line.client(lost=lost)
    with pytest.raises(Unavailable, match="a frame of 4294967280 bytes"):
        await second.call("s", "Wait", b"x")
    assert len(lost) == 1


async def test_a_frame_in_small_pieces_is_looked_at_once(line, monkeypatch):
    """What a byte costs does not depend on how many came before it."""
    seen = 0
    whole = frames.FrameDecoder.feed

    def feed(decoder, data):
        nonlocal seen
        seen += len(data)
        return whole(decoder, data)

    client = line.client()
    task = await begun(client, "Check", b"")
    line.asked()
    monkeypatch.setattr(module.FrameDecoder, "feed", feed)
    reply = envelope.encode_response(Response(None, bytes(1_000_000)))
    data = frames.pack(1, frames.RESPONSE, 0, reply)
    loop = asyncio.get_running_loop()
    line.guest.setblocking(False)
    await loop.sock_sendall(line.guest, data)
    assert await task == bytes(1_000_000)
    assert seen == 2 * len(data), "by the journal and by the protocol"
    client.close()
