"""A daemon of real parts, in a process of its own, killed after every durable step it takes.

North is a client that sends requests, south a guest that counts what it is asked to do. Whatever the step: each request is
answered once and rightly, and the guest was asked once.
"""

import asyncio
import os
import select
import signal
import socket
import threading
from functools import partial

import pytest

from kata_shimd.durable.caller import DurableClient
from kata_shimd.durable.channel import DurableSink, DurableSource
from kata_shimd.durable.memory import new
from kata_shimd.durable.once import MAX_TRIES, Once
from kata_shimd.durable.store import Store
from kata_shimd.durable.tape import HEAD, Tape
from kata_shimd.errors import Code
from kata_shimd.ttrpc import envelope, frames
from kata_shimd.ttrpc.envelope import Request, Response
from kata_shimd.ttrpc.server import Server
from kata_shimd.ttrpc.service import Method, Service

REQUESTS = 4
MANY = 400


class Fuse:
    """SIGKILL at the k-th step."""

    def __init__(self, k):
        self.left = k

    def __call__(self):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


class Peers:
    """What a keeper holds, and the peers at the other ends."""

    def __init__(self, directory):
        self.path = directory / "state"
        self.north, self.client = socket.socketpair()
        self.south, guest = socket.socketpair()
        self.journals = new(HEAD), new(HEAD)
        self.asked = []
        self.guest = guest
        self.thread = threading.Thread(target=self._answer, daemon=True)
        self.thread.start()

    def _answer(self):
        """The guest: does what it is asked, and says how often it has done anything."""
        decoder = frames.FrameDecoder()
        while data := self.guest.recv(1 << 16):
            for frame in decoder.feed(data):
                request = envelope.decode_request(frame.data)
                self.asked.append(request.payload)
                reply = envelope.encode_response(Response(None, b"did " + request.payload))
                self.guest.sendall(frames.pack(frame.stream, frames.RESPONSE, 0, reply))

    def close(self):
        self.south.close()
        self.guest.shutdown(socket.SHUT_RDWR)
        self.thread.join()
        for sock in (self.north, self.client, self.guest):
            sock.close()
        for journal in self.journals:
            os.close(journal)


async def serve(peers, fuse):
    store = Store(peers.path, point=fuse)
    once = Once(store, lambda: None)
    agent = DurableClient(
        peers.south,
        Tape(peers.journals[1], point=fuse),
        barrier=store.flush,
        key_of=lambda _method, payload: payload,
        consumed=(),
        on_lost=print,
    )

    async def work(_call, payload):
        """Two steps in the guest and one on record."""
        first = await agent.call("guest", "Do", payload + b" first")
        store.put(f"state/{payload.decode()}", "half")
        second = await agent.call("guest", "Do", payload + b" second")
        store.put(f"state/{payload.decode()}", "done")
        return first + b", " + second

    async def die(_call, _payload):
        os.kill(os.getpid(), signal.SIGKILL)

    methods = {
        "Die": Method(handler=die, decode=bytes, encode=bytes, detached=True),
        "Work": Method(handler=work, decode=bytes, encode=bytes, detached=True),
        "Look": Method(handler=lambda _call, payload: b"saw " + payload, decode=bytes, encode=bytes, immediate=True),
    }
    server = Server(None, [once.service(Service("test", methods))], outlived=True)
    async with asyncio.TaskGroup() as group:
        server.start(group)
        tape = Tape(peers.journals[0], point=fuse)
        source, sink = partial(DurableSource, tape), partial(DurableSink, tape, store.flush)
        server.adopt(peers.north, "c1", source=source, sink=sink)
        await asyncio.Event().wait()


def begin(peers, k):
    """Fork a daemon that dies at step k; its pid."""
    pid = os.fork()
    if pid == 0:
        try:
            with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
                runner.run(serve(peers, Fuse(k)))
        finally:
            os._exit(1)
    return pid


def answers(peers, pid, wanted):
    """Read replies until all are there, or the daemon has died; whether it died."""
    pidfd = os.pidfd_open(pid)
    got = b""
    try:
        while True:
            ready, _, _ = select.select([peers.client, pidfd], [], [], 20)
            assert ready, "no answer, no death"
            if peers.client in ready:
                got += peers.client.recv(1 << 16)
                if len(frames.FrameDecoder().feed(got)) >= wanted:
                    return got, False
            elif pidfd in ready:
                return got, True
    finally:
        os.close(pidfd)


def requests():
    for number in range(REQUESTS):
        method = "Look" if number % 2 else "Work"
        request = Request("test", method, f"r{number}".encode())
        yield frames.pack(2 * number + 1, frames.REQUEST, 0, envelope.encode_request(request))


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_killed_after_every_step(tmp_path):
    for k in range(1, MANY):
        directory = tmp_path / str(k)
        directory.mkdir()
        peers = Peers(directory)
        peers.client.sendall(b"".join(requests()))
        pid = begin(peers, k)
        got, died = answers(peers, pid, REQUESTS)
        if died:
            assert os.waitpid(pid, 0)[1] == signal.SIGKILL, f"it failed by itself at step {k}"
            left = REQUESTS - len(frames.FrameDecoder().feed(got))
            pid = begin(peers, 0)
            more = answers(peers, pid, left)[0] if left else b""
            got += more
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        replies = {frame.stream: envelope.decode_response(frame.data) for frame in frames.FrameDecoder().feed(got)}
        assert sorted(replies) == [1, 3, 5, 7], k
        assert replies[1].payload == b"did r0 first, did r0 second", k
        assert replies[3].payload == b"saw r1", k
        assert sorted(peers.asked) == [b"r0 first", b"r0 second", b"r2 first", b"r2 second"], k
        peers.close()
        if not died:
            break
    assert 20 < k < MANY - 1


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_request_that_kills_is_refused_in_the_end(tmp_path):
    """And the one behind it is served by the daemon that refused it."""
    peers, deaths = Peers(tmp_path), 0
    for stream, method in ((1, "Die"), (3, "Look")):
        request = envelope.encode_request(Request("test", method, b"x"))
        peers.client.sendall(frames.pack(stream, frames.REQUEST, 0, request))
    got, died = b"", True
    while died:
        pid = begin(peers, 0)
        more, died = answers(peers, pid, 2 - len(frames.FrameDecoder().feed(got)))
        got += more
        if died:
            deaths += 1
            os.waitpid(pid, 0)
        assert deaths < 10
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    replies = {frame.stream: envelope.decode_response(frame.data) for frame in frames.FrameDecoder().feed(got)}
    assert deaths == MAX_TRIES
    assert replies[1].status.code == Code.INTERNAL
    assert f"{MAX_TRIES} daemons have died over it" in replies[1].status.message
    assert replies[3].payload == b"saw x"
    peers.close()
