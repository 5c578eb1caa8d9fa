"""Streams on both loops, and what a peer that does not read, or sends too much, costs."""

import asyncio
import socket

import pytest

from ..errors import Code, DeadlineExceeded, FailedPrecondition, ResourceExhausted, Unavailable
from . import Client, Limits, RpcError, Status
from .conftest import NAME, SMALL, Handlers, code_of, failure, raw_client, raw_server, request
from .envelope import Response, encode_response
from .frames import DATA, NO_DATA, REMOTE_CLOSED, REMOTE_OPEN, REQUEST, RESPONSE


class TestStreams:
    async def test_client_streams(self, client: Client) -> None:
        async with await client.stream(NAME, "Sum", client_streaming=True) as stream:
            for size in range(10):
                await stream.send(bytes(size))
            assert await stream.result() == b"45"

    async def test_first_message_in_the_request(self, client: Client) -> None:
        async with await client.stream(NAME, "Chat", b"first", client_streaming=True) as stream:
            # It is said to carry data, so both the flag and the payload tell the server.
            assert await stream.receive() == b"FIRST"

    async def test_server_streams(self, client: Client) -> None:
        async with await client.stream(NAME, "Count", b"1000") as stream:
            assert [message async for message in stream] == [b"%d" % number for number in range(1000)]
            assert await stream.receive() is None

    async def test_both_stream_and_empty_messages_count(self, client: Client) -> None:
        async with await client.stream(NAME, "Chat", client_streaming=True) as stream:
            for word in (b"one", b"", b"two"):
                await stream.send(word)
                assert await stream.receive() == word.upper()
            stream.end()
            assert await stream.receive() is None
            with pytest.raises((Unavailable, FailedPrecondition)):
                await stream.send(b"x")

    async def test_call_and_method_must_agree(self, client: Client) -> None:
        assert (await failure(client, "Sum")).code is Code.INVALID_ARGUMENT
        async with await client.stream(NAME, "Echo", client_streaming=True) as stream:
            with pytest.raises(RpcError) as caught:
                await stream.receive()
            assert caught.value.code is Code.INVALID_ARGUMENT

    async def test_failure_in_mid_stream_comes_after_what_was_sent(self) -> None:
        async with raw_server() as (peer, client), await client.stream(NAME, "Chat", client_streaming=True) as stream:
            await peer.frame()
            await peer.send((1, DATA, 0, b"one"), (1, RESPONSE, 0, encode_response(Response(Status(10, "broke off")))))
            assert await stream.receive() == b"one"
            with pytest.raises(RpcError) as caught:
                await stream.receive()
            assert caught.value.code is Code.ABORTED

    async def test_end_that_carries_a_message(self) -> None:
        """Go's server may end so; its own server refuses it from clients (docs/ttrpc.md)."""
        async with raw_server() as (peer, client), await client.stream(NAME, "Count", b"1") as stream:
            await peer.frame()
            await peer.send((1, DATA, REMOTE_CLOSED, b"only"))
            assert [message async for message in stream] == [b"only"]

    async def test_server_overrun_fails_that_stream_only(self, handlers: Handlers) -> None:
        async with raw_client(handlers, limits=SMALL) as (peer, _):
            await peer.send((1, REQUEST, REMOTE_OPEN | NO_DATA, request("Idle")))
            await handlers.entered.wait()
            await peer.send(*[(1, DATA, 0, b"x")] * 5, (3, REQUEST, 0, request("Now", b"alive")))
            first = await peer.frame()
            assert (first.stream, code_of(first)) == (1, Code.RESOURCE_EXHAUSTED)
            assert (await peer.frame()).stream == 3
            await handlers.ended.wait()
        assert handlers.how == "cancelled"

    async def test_client_overrun_fails_that_stream_only(self) -> None:
        async with raw_server(limits=SMALL) as (peer, client), await client.stream(NAME, "Count", b"9") as stream:
            await peer.frame()
            await peer.send(*[(1, DATA, 0, b"%d" % number) for number in range(6)])
            async with asyncio.TaskGroup() as group:
                call = group.create_task(client.call(NAME, "Echo"))
                await peer.send(((await peer.frame()).stream, RESPONSE, 0, b""))
            assert call.result() == b""
            assert [await stream.receive() for _ in range(4)] == [b"0", b"1", b"2", b"3"]
            with pytest.raises(ResourceExhausted):
                await stream.receive()

    async def test_leaving_the_block_forgets_the_stream(self) -> None:
        async with raw_server() as (peer, client):
            async with await client.stream(NAME, "Chat", client_streaming=True):
                await peer.frame()
            end = await peer.frame()
            assert (end.stream, end.type, end.flags) == (1, DATA, REMOTE_CLOSED | NO_DATA)
            assert not client._calls


class TestBackPressure:
    async def test_a_stream_waits_for_a_peer_that_does_not_read(self, handlers: Handlers) -> None:
        async with raw_client(handlers, limits=SMALL) as (peer, server):
            await peer.send((1, REQUEST, REMOTE_CLOSED, request("Flood")))
            await handlers.entered.wait()
            (connection,) = server._connections.values()
            while not connection._sink.congested:
                await asyncio.wait_for(peer.frame(), 5)
            assert connection._sink._queued < SMALL.write_high + (64 << 10)
            for _ in range(20):
                assert len((await peer.frame()).data) == 32 << 10

    async def test_replies_nobody_reads_cost_only_that_connection(self, handlers: Handlers) -> None:
        lost: list[str] = []
        limits = Limits(write_max=1 << 20, stall=60)
        async with raw_client(handlers, limits=limits, on_lost=lost.append) as (peer, server):
            ours, theirs = socket.socketpair()
            server.adopt(theirs)
            async with Client(ours) as other:
                sending = [(2 * n + 1, REQUEST, 0, request("Now", bytes(64 << 10))) for n in range(64)]
                with pytest.raises((BrokenPipeError, ConnectionResetError)):
                    while True:
                        await peer.send(*sending)
                assert await other.call(NAME, "Echo", b"alive") == b"alive"
            assert lost[0] == "c1"

    async def test_a_peer_that_takes_nothing_is_given_up(self, handlers: Handlers) -> None:
        lost = asyncio.Event()
        limits = Limits(stall=0.02)
        async with raw_client(handlers, limits=limits, on_lost=lambda _name: lost.set()) as (peer, _):
            await peer.send((1, REQUEST, REMOTE_CLOSED, request("Flood")))
            await asyncio.wait_for(lost.wait(), 5)
            await handlers.ended.wait()

    async def test_a_call_to_a_stuck_server_keeps_its_deadline(self) -> None:
        async with raw_server(limits=SMALL) as (_, client):
            async with asyncio.TaskGroup() as group:
                for _ in range(20):
                    group.create_task(self.late(client))
            assert client.error is None

    @staticmethod
    async def late(client: Client) -> None:
        with pytest.raises(DeadlineExceeded):
            await client.call(NAME, "Echo", bytes(64 << 10), timeout=0.05)
