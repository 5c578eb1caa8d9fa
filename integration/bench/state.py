"""The answer to `State`, beside containerd-shim-runc-v2's, to the same client.

The client is as little as there can be: frames that were encoded beforehand, written to a blocking socket, and
answers that are read to their end and not looked at. Each round asks either shim some hundred times; its value is the
median of those.
"""

import asyncio
import socket
import statistics
import time
from collections.abc import Iterator
from typing import Final

from integration.bench.guest import POD, Shim, numbered
from integration.bench.results import Claim, Group, Measured, Options, Series
from integration.bench.runc import beside
from kata_shimd import wire
from kata_shimd.api import task
from kata_shimd.api.services import task_v2
from kata_shimd.ttrpc import envelope, frames

CALLS: Final = 500


def request(stream: int) -> bytes:
    payload = wire.encode(task.StateRequest(id=POD))
    call = envelope.Request(task_v2.STATE.service, task_v2.STATE.name, payload)
    return frames.pack(stream, frames.REQUEST, 0, envelope.encode_request(call))


def answer(sock: socket.socket) -> bytes:
    """The data of the next frame."""
    head = _exactly(sock, frames.HEADER.size)
    return _exactly(sock, frames.HEADER.unpack(head)[0])


def _exactly(sock: socket.socket, size: int) -> bytes:
    got = b""
    while len(got) < size:
        more = sock.recv(size - len(got))
        if not more:
            raise ConnectionError("the shim has closed the connection")
        got += more
    return got


def seconds(sock: socket.socket, calls: list[bytes]) -> Iterator[float]:
    """What each call took."""
    for call in calls:
        begin = time.perf_counter()
        sock.sendall(call)
        answer(sock)
        yield time.perf_counter() - begin


def check(sock: socket.socket) -> None:
    """That what is answered is the state of a container that runs."""
    sock.sendall(request(1))
    reply = envelope.decode_response(answer(sock))
    assert reply.status is None, reply
    state = wire.decode(task.StateResponse, reply.payload)
    assert (state.id, state.status.name) == (POD, "RUNNING"), state


async def measure(options: Options) -> dict[str, list[float]]:
    async with beside(options) as shims:
        return await asyncio.to_thread(_measure, shims, options.rounds, 20 if options.quick else CALLS)


def _measure(shims: tuple[Shim, ...], rounds: int, count: int) -> dict[str, list[float]]:
    taken = numbered(("State", "runc's shim: State"))
    sockets = [socket.socket(socket.AF_UNIX) for _ in shims]
    for sock, shim in zip(sockets, shims, strict=True):
        sock.connect(str(shim.address))
        check(sock)
    for number in range(rounds):
        streams = range(3 + 2 * count * number, 3 + 2 * count * (number + 1), 2)
        calls = [request(stream) for stream in streams]
        for values, sock in zip(taken.values(), sockets, strict=True):
            values.append(statistics.median(seconds(sock, calls)))
    for sock in sockets:
        sock.close()
    return taken


def run(options: Options) -> Measured:
    taken = asyncio.run(measure(options))
    return {name: Series("µs", [1e6 * value for value in values]) for name, values in taken.items()}


GROUP: Final = Group(
    "state",
    "`State`",
    f"""What `State` of a running container takes, beside containerd-shim-runc-v2 with a running container, to the same
client: frames encoded beforehand, a blocking socket, answers read to their end and not decoded. A value is the median
of {CALLS} calls in a row.""",
    run,
    (
        Claim(
            "`State` p50 ÷ runc shim's, same client",
            "State",
            "runc's shim: State",
            3,
            limits="interpreted code: a frame, an envelope and a request are decoded for each call",
        ),
    ),
)
