"""A peer that sends requests and reads answers, and a daemon that is killed after every step it takes.

Each request is answered once, and the peer's stream of frames is never out of step.
"""

import os
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kata_shimd.durable import replay
from kata_shimd.durable.tape import HEAD, Tape
from kata_shimd.ttrpc.frames import REQUEST, RESPONSE, FrameDecoder, pack


class Killed(BaseException):
    """The daemon's SIGKILL."""


class Bomb:
    """Goes off at the k-th step."""

    def __init__(self, k):
        self.left = k

    def __call__(self):
        self.left -= 1
        if self.left == 0:
            raise Killed


def never():
    return None


class Held:
    """What a keeper holds of one connection."""

    def __init__(self):
        self.ours, self.peer = socket.socketpair()
        self.ours.setblocking(False)
        self.peer.setblocking(False)
        self.journal = os.memfd_create("test")
        os.ftruncate(self.journal, HEAD)

    def close(self):
        self.ours.close()
        self.peer.close()
        os.close(self.journal)


class Daemon:
    """Answers request n with response n; owes nothing but what the tape says."""

    def __init__(self, held, point, *, hold=frozenset(), forget=False):
        self.sock = held.ours.dup()
        self.fd, self.point = os.dup(held.journal), point
        self.tape = None
        self.decoder = FrameDecoder()
        self.hold, self.forget = hold, forget
        self.begun = []

    def run(self):
        if self.tape is None:
            self.begin()
        while True:
            try:
                data = self.tape.receive(self.sock)
            except BlockingIOError:
                return
            self.take(data)
            if self.forget:
                owed = replay.owed(self.tape.received, self.tape.sent)
                if not owed.tail:
                    self.tape.forget(b"".join(owed.frames))

    def begin(self):
        self.tape = Tape(self.fd, point=self.point)
        self.tape.recover(self.sock)
        self.flush()
        owed = replay.owed(self.tape.received, self.tape.sent)
        self.take(b"".join(owed.frames) + owed.tail)

    def take(self, data):
        for frame in self.decoder.feed(data):
            self.begun.append(frame.stream)
            if frame.stream not in self.hold:
                self.tape.append(pack(frame.stream, RESPONSE, 0, frame.data))
                self.flush()

    def flush(self):
        while self.tape.unsent:
            try:
                self.tape.send(self.sock.fileno())
            except BlockingIOError:
                return

    def die(self):
        self.sock.close()
        if self.tape is None:
            os.close(self.fd)
        else:
            self.tape.close()


def requests(count, size=40):
    return [pack(2 * n + 1, REQUEST, 0, bytes([n % 251]) * (size + n)) for n in range(count)]


def answers(peer):
    data = b""
    while True:
        try:
            data += peer.recv(1 << 20)
        except BlockingIOError:
            break
    decoder = FrameDecoder()
    frames = decoder.feed(data)
    assert decoder.missing == 0, "a frame was cut"
    return [(frame.stream, frame.data) for frame in frames]


def life(k, pieces, **how):
    """Send pieces one after the other to a daemon that dies once, at step k; the answers, and whether it died."""
    held, point, died = Held(), Bomb(k), False
    daemon = Daemon(held, point, **how)
    for piece in pieces:
        held.peer.sendall(piece)
        try:
            daemon.run()
        except Killed:
            died = True
            daemon.die()
            daemon = Daemon(held, never, **how)
            daemon.run()
    got = answers(held.peer)
    daemon.die()
    held.close()
    return got, died, daemon


@pytest.mark.parametrize("forget", [False, True])
@pytest.mark.parametrize("cut", [7, 50, 1000])
def test_killed_after_every_step(cut, forget):
    stream = b"".join(requests(4))
    pieces = [stream[at : at + cut] for at in range(0, len(stream), cut)]
    wanted = [(2 * n + 1, bytes([n]) * (40 + n)) for n in range(4)]
    for k in range(1, 1000):
        got, died, _ = life(k, pieces, forget=forget)
        assert got == wanted, f"killed after step {k}"
        if not died:
            break
    assert 10 < k < 999


@pytest.mark.parametrize("forget", [False, True])
def test_what_was_not_answered_is_begun_again_by_the_next_daemon(forget):
    """Stream 3 is a Wait: it stays owed, however often daemons die, and however much is forgotten."""
    pieces = requests(5)
    for k in range(1, 1000):
        got, died, last = life(k, pieces, hold={3}, forget=forget)
        assert [stream for stream, _ in got] == [1, 5, 7, 9], k
        assert last.begun.count(3) == 1, "taken up once by the last daemon, be it the first or the second"
        if not died:
            break


@settings(deadline=None, max_examples=150)
@given(
    sizes=st.lists(st.integers(0, 3000), min_size=1, max_size=12),
    cuts=st.lists(st.integers(1, 5000), min_size=1, max_size=6),
    deaths=st.lists(st.integers(1, 40), max_size=20),
    forget=st.booleans(),
)
def test_any_stream_cut_anywhere_and_killed_any_number_of_times(sizes, cuts, deaths, forget):
    frames = [pack(2 * n + 1, REQUEST, 0, os.urandom(size)) for n, size in enumerate(sizes)]
    stream, held, at, turn = b"".join(frames), Held(), 0, 0
    bombs = [Bomb(k) for k in deaths]
    daemon = Daemon(held, bombs.pop() if bombs else never, forget=forget)
    got = []
    while True:
        try:
            daemon.run()
        except Killed:
            daemon.die()
            daemon = Daemon(held, bombs.pop() if bombs else never, forget=forget)
            continue
        if at >= len(stream):
            break
        step = cuts[turn % len(cuts)]
        held.peer.sendall(stream[at : at + step])
        at, turn = at + step, turn + 1
    got = answers(held.peer)
    daemon.die()
    held.close()
    assert got == [(2 * n + 1, frame[10:]) for n, frame in enumerate(frames)]


def test_a_reader_that_is_slow_gets_every_byte_once():
    """Replies larger than the socket: sent in parts, by three daemons."""
    held = Held()
    daemon = Daemon(held, never)
    daemon.begin()
    big = [pack(2 * n + 1, REQUEST, 0, os.urandom(60_000)) for n in range(20)]
    got = bytearray()
    for frame in big:
        held.peer.setblocking(True)
        held.peer.sendall(frame)
        held.peer.setblocking(False)
        daemon.run()
        daemon.die()
        daemon = Daemon(held, never)
        daemon.begin()
        try:
            got += held.peer.recv(10_000)
        except BlockingIOError:
            pass
    while daemon.tape.unsent:
        daemon.flush()
        got += held.peer.recv(1 << 20)
    try:
        while True:
            got += held.peer.recv(1 << 20)
    except BlockingIOError:
        pass
    assert bytes(got) == b"".join(pack(2 * n + 1, RESPONSE, 0, frame[10:]) for n, frame in enumerate(big))
    daemon.die()
    held.close()


def test_forgetting_gives_memory_back():
    held = Held()
    daemon = Daemon(held, never, forget=True)
    for n in range(200):
        held.peer.sendall(pack(2 * n + 1, REQUEST, 0, b"x" * 20_000))
        daemon.run()
        answers(held.peer)
    assert os.fstat(held.journal).st_blocks * 512 < 1 << 18
    daemon.die()
    held.close()
