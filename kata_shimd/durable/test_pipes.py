"""Streams whose daemon is killed after every step: every byte once, in order, both ways."""

import os

import pytest

from kata_shimd.durable.memory import new
from kata_shimd.durable.pipes import HEAD, InPipe, OutPipe
from kata_shimd.durable.test_tape import Bomb, Killed, never


class Guest:
    """Answers reads and writes by call number; remembers each answer, as the journal of the agent's channel does."""

    def __init__(self, output=b""):
        self.output, self.input = output, b""
        self.calls = 0
        self.last_read = self.last_write = None

    def read(self, count):
        self.calls += 1
        data, self.output = self.output[:count], self.output[count:]
        self.last_read = (self.calls, data)

    def write(self, data):
        self.calls += 1
        self.input += data[: len(data) // 2 + 1]
        self.last_write = (self.calls, len(data) // 2 + 1)


def out_of_the_guest(fd, guest, fifo, point):
    """One daemon: takes up the last answer unless its bytes are in the pipe already."""
    pipe = OutPipe(os.dup(fd), point=point)
    try:
        while True:
            while pipe.waiting:
                pipe.send(fifo)
            if guest.last_read is None or guest.last_read[0] == pipe.call:
                guest.read(1000)
            call, data = guest.last_read
            if not data:
                return
            pipe.put(data, call)
    finally:
        pipe.close()


def test_out_of_the_guest():
    wanted = os.urandom(5000)
    for k in range(1, 200):
        reader, fifo = os.pipe()
        fd, guest = new(HEAD), Guest(wanted)
        try:
            out_of_the_guest(fd, guest, fifo, Bomb(k))
            died = False
        except Killed:
            died = True
            out_of_the_guest(fd, guest, fifo, never)
        assert os.read(reader, 10_000) == wanted, k
        for number in (reader, fifo, fd):
            os.close(number)
        if not died:
            break
    assert 10 < k < 199


def into_the_guest(fd, guest, fifo, point):
    pipe = InPipe(os.dup(fd), point=point)
    try:
        while True:
            while not (data := pipe.peek(700)):
                if not pipe.fill(fifo, 1000):
                    return
            if guest.last_write is None or guest.last_write[0] == pipe.call:
                guest.write(data)
            call, taken = guest.last_write
            pipe.took(taken, call)
    finally:
        pipe.close()


def test_into_the_guest():
    wanted = os.urandom(4000)
    for k in range(1, 400):
        fifo, writer = os.pipe()
        os.write(writer, wanted)
        os.close(writer)
        fd, guest = new(HEAD), Guest()
        try:
            into_the_guest(fd, guest, fifo, Bomb(k))
            died = False
        except Killed:
            died = True
            into_the_guest(fd, guest, fifo, never)
        assert guest.input == wanted, k
        os.close(fifo)
        os.close(fd)
        if not died:
            break
    assert 10 < k < 399


@pytest.mark.parametrize("start", [0, (1 << 32) - 5000, (1 << 34) - 1])
def test_positions_beyond_32_bits(start):
    """A stream that has carried gigabytes: the word has only the low half of where it is."""
    fd = new(HEAD)
    pipe = OutPipe(fd, point=never)
    os.lseek(fd, HEAD + start, os.SEEK_SET)
    pipe._words[1] = start & 0xFFFFFFFF
    reader, fifo = os.pipe()
    pipe.put(b"x" * 10_000, 7)
    assert (pipe.waiting, pipe.call) == (10_000, 7)
    assert pipe.send(fifo) == 10_000
    assert (os.read(reader, 20_000), pipe.waiting) == (b"x" * 10_000, 0)
    os.close(reader)
    os.close(fifo)
    pipe.close()


def test_memory_is_given_back():
    fd = new(HEAD)
    pipe = OutPipe(fd, point=never)
    null = os.open(os.devnull, os.O_WRONLY)
    for call in range(1, 100):
        pipe.put(bytes(100_000), call)
        while pipe.waiting:
            pipe.send(null)
    assert os.fstat(fd).st_blocks * 512 < 3 << 20
    os.close(null)
    pipe.close()
