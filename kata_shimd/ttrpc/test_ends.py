"""Client and server joined by a socket pair, on both loops: calls, streams, time, loss, and peers that misbehave."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest

from ..errors import Code, DeadlineExceeded, FailedPrecondition, NotFound, ResourceExhausted, Unavailable
from . import Call, Client, Limits, Method, RpcError, Server, Service, Status
from .envelope import Detail, Request, Response, decode_response, encode_request, encode_response
from .frames import DATA, MAX_DATA, NO_DATA, REMOTE_CLOSED, REMOTE_OPEN, REQUEST, RESPONSE, Frame
from .protocol import MAX_STRAYS
from .service import now
from .testing import RawPeer, memory_pair

NAME = "test.v1.Test"
SMALL = Limits(stream_messages=4, stream_bytes=1 << 20, write_high=64 << 10, write_low=16 << 10, write_max=1 << 20)

mark: ContextVar[str] = ContextVar("mark", default="none")


class Handlers:
    """What the server does; each test looks at the fields that its methods write."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.entered = asyncio.Event()
        self.release = asyncio.Event()
        self.ended = asyncio.Event()
        self.how = ""

    def now(self, call: Call, request: bytes) -> bytes:
        self.calls.append(call)
        previous = mark.get()
        mark.set("dirty")
        return request or previous.encode()

    async def echo(self, call: Call, request: bytes) -> bytes:
        self.calls.append(call)
        return request

    async def wait(self, _call: Call, request: bytes) -> bytes:
        self.entered.set()
        try:
            await self.release.wait()
            self.how = "released"
        except asyncio.CancelledError:
            self.how = "cancelled"
            raise
        finally:
            self.ended.set()
        return request

    async def not_found(self, _call: Call, _request: bytes) -> bytes:
        raise NotFound("find", "it", "gone", hint="look elsewhere")

    async def details(self, _call: Call, _request: bytes) -> bytes:
        raise RpcError("inner", Status(Code.ABORTED, "inner text", (Detail("type", b"value"),)))

    async def bug(self, _call: Call, _request: bytes) -> bytes:
        raise KeyError("secret")

    async def cancels_itself(self, _call: Call, _request: bytes) -> bytes:
        raise asyncio.CancelledError

    async def huge(self, _call: Call, _request: bytes) -> bytes:
        return bytes(MAX_DATA)

    async def sum_up(self, _call: Call, stream: Any) -> bytes:
        return str(sum([len(message) async for message in stream])).encode()

    async def count(self, _call: Call, stream: Any) -> None:
        for number in range(int(await stream.receive())):
            await stream.send(b"%d" % number)

    async def chat(self, _call: Call, stream: Any) -> None:
        async for message in stream:
            await stream.send(message.upper())

    async def idle(self, call: Call, _stream: Any) -> None:
        await self.wait(call, b"")

    async def flood(self, _call: Call, stream: Any) -> None:
        try:
            while True:
                await stream.send(bytes(32 << 10))
                self.entered.set()
        finally:
            self.ended.set()

    def service(self) -> Service:
        return Service(
            NAME,
            {
                "Now": _method(self.now, immediate=True),
                "Echo": _method(self.echo),
                "Wait": _method(self.wait),
                "Detached": _method(self.wait, detached=True),
                "Own": _method(self.wait, enforce_deadline=False),
                "NotFound": _method(self.not_found),
                "Details": _method(self.details),
                "Bug": _method(self.bug),
                "BugNow": _method(lambda _call, _request: {}["secret"], immediate=True),
                "Cancelled": _method(self.cancels_itself),
                "Huge": _method(self.huge),
                "Picky": _method(self.echo, decode=lambda data: data.decode("ascii")),
                "Sum": _method(self.sum_up, client_streaming=True),
                "Count": _method(self.count, server_streaming=True),
                "Chat": _method(self.chat, client_streaming=True, server_streaming=True),
                "Idle": _method(self.idle, client_streaming=True, server_streaming=True),
                "Flood": _method(self.flood, server_streaming=True),
            },
        )


def _method(handler: Any, **options: Any) -> Method[bytes, bytes]:
    return Method(handler=handler, **{"decode": bytes, "encode": bytes, **options})


@pytest.fixture
async def handlers() -> Handlers:
    return Handlers()


@pytest.fixture
async def client(handlers: Handlers) -> AsyncIterator[Client]:
    async with memory_pair([handlers.service()], drain_budget=0) as (made, _):
        yield made


@asynccontextmanager
async def raw_client(handlers: Handlers, **options: Any) -> AsyncIterator[tuple[RawPeer, Server]]:
    """A server, and a peer that calls it by hand."""
    ours, theirs = socket.socketpair()
    async with RawPeer(ours) as peer, Server(None, [handlers.service()], drain_budget=0, **options) as server:
        server.adopt(theirs)
        yield peer, server


@asynccontextmanager
async def raw_server(**options: Any) -> AsyncIterator[tuple[RawPeer, Client]]:
    """A client, and a peer that answers it by hand."""
    ours, theirs = socket.socketpair()
    async with RawPeer(ours) as peer, Client(theirs, **options) as client:
        yield peer, client


def request(method: str, payload: bytes = b"", **more: Any) -> bytes:
    return encode_request(Request(NAME, method, payload, **more))


def code_of(frame: Frame) -> int:
    assert frame.type == RESPONSE
    status = decode_response(frame.data).status
    return 0 if status is None else status.code


async def failure(client: Client, method: str, payload: bytes = b"", **options: Any) -> RpcError:
    with pytest.raises(RpcError) as caught:
        await client.call(NAME, method, payload, **options)
    return caught.value


class TestCalls:
    async def test_reply(self, client: Client) -> None:
        assert await client.call(NAME, "Echo", b"hello") == b"hello"
        assert await client.call(NAME, "Now", b"hello") == b"hello"

    async def test_call_says_who_and_what(self, client: Client, handlers: Handlers) -> None:
        await client.call(NAME, "Echo", metadata={"Key": ("a", "b"), "other": ("c",)})
        await client.call(NAME, "Now", timeout=5)
        first, second = handlers.calls
        assert (first.connection, first.stream, first.id) == ("c1", 1, "c1/1")
        assert (first.service, first.method, first.deadline) == (NAME, "Echo", None)
        assert first.metadata == {"key": ("a", "b"), "other": ("c",)}
        assert (second.id, dict(second.metadata)) == ("c1/3", {})
        assert second.deadline is not None
        assert 4 < second.deadline - now() <= 5

    async def test_failure_arrives_as_it_was_raised(self, client: Client) -> None:
        error = await failure(client, "NotFound")
        assert (error.code, error.message, error.details) == (Code.NOT_FOUND, "find: it: gone; look elsewhere", ())

    async def test_details_pass_through(self, client: Client) -> None:
        error = await failure(client, "Details")
        assert (error.code, error.details) == (Code.ABORTED, (Detail("type", b"value"),))

    @pytest.mark.parametrize("method", ["Bug", "BugNow"])
    async def test_a_bug_is_unknown_and_keeps_its_text(self, client: Client, method: str) -> None:
        error = await failure(client, method)
        assert error.code is Code.UNKNOWN
        assert "secret" not in error.message
        assert "KeyError" in error.message

    async def test_a_handler_that_cancels_itself_is_answered(self, client: Client) -> None:
        assert (await failure(client, "Cancelled")).code is Code.CANCELED

    async def test_undecodable_request_is_invalid(self, client: Client) -> None:
        assert (await failure(client, "Picky", b"\xff")).code is Code.INVALID_ARGUMENT

    async def test_unknown_method_and_service(self, client: Client) -> None:
        assert (await failure(client, "Nothing")).code is Code.UNIMPLEMENTED
        with pytest.raises(RpcError) as caught:
            await client.call("no.Such", "Echo")
        assert caught.value.code is Code.UNIMPLEMENTED

    async def test_one_mebibyte_there_and_back(self, client: Client) -> None:
        payload = bytes(range(256)) * 4096
        assert await client.call(NAME, "Echo", payload) == payload

    async def test_thousand_at_once(self, client: Client) -> None:
        async with asyncio.TaskGroup() as group:
            calls = [group.create_task(client.call(NAME, "Echo", b"%d" % number)) for number in range(1000)]
        assert [call.result() for call in calls] == [b"%d" % number for number in range(1000)]

    async def test_oversize_request_is_refused_before_it_is_sent(self, client: Client) -> None:
        with pytest.raises(ResourceExhausted):
            await client.call(NAME, "Echo", bytes(MAX_DATA))
        assert await client.call(NAME, "Echo", b"alive") == b"alive"

    async def test_oversize_reply_is_an_error_instead(self, client: Client) -> None:
        assert (await failure(client, "Huge")).code is Code.RESOURCE_EXHAUSTED
        assert await client.call(NAME, "Echo", b"alive") == b"alive"

    async def test_immediate_handlers_do_not_share_a_context(self, client: Client) -> None:
        assert [await client.call(NAME, "Now") for _ in range(2)] == [b"none", b"none"]


class TestTime:
    async def test_timeout_here_and_the_late_reply_is_dropped(self, client: Client, handlers: Handlers) -> None:
        with pytest.raises(DeadlineExceeded):
            await client.call(NAME, "Own", timeout=0.01)
        handlers.release.set()
        await handlers.ended.wait()
        assert await client.call(NAME, "Echo", b"alive") == b"alive"

    async def test_deadline_cancels_the_handler(self, handlers: Handlers) -> None:
        async with raw_client(handlers) as (peer, _):
            await peer.send((1, REQUEST, 0, request("Wait", timeout_nano=10_000_000)))
            assert code_of(await peer.frame()) == Code.DEADLINE_EXCEEDED
        assert handlers.how == "cancelled"

    async def test_deadline_answers_for_a_detached_handler_which_goes_on(self, handlers: Handlers) -> None:
        async with raw_client(handlers) as (peer, _):
            await peer.send((1, REQUEST, 0, request("Detached", timeout_nano=10_000_000)))
            assert code_of(await peer.frame()) == Code.DEADLINE_EXCEEDED
            assert not handlers.ended.is_set()
            handlers.release.set()
            await handlers.ended.wait()
            await peer.send((3, REQUEST, 0, request("Now", b"x")))
            assert (await peer.frame()).stream == 3  # and nothing more came for stream 1
        assert handlers.how == "released"

    async def test_a_deadline_may_be_the_handlers_own(self, handlers: Handlers) -> None:
        async with raw_client(handlers) as (peer, _):
            await peer.send((1, REQUEST, 0, request("Own", timeout_nano=-1)))
            await handlers.entered.wait()
            handlers.release.set()
            assert code_of(await peer.frame()) == 0

    async def test_a_deadline_that_has_passed_runs_nothing(self, handlers: Handlers) -> None:
        async with raw_client(handlers) as (peer, _):
            await peer.send((1, REQUEST, 0, request("Wait", timeout_nano=-1)))
            assert code_of(await peer.frame()) == Code.DEADLINE_EXCEEDED
        assert not handlers.entered.is_set()

    async def test_a_stream_has_a_time_limit_too(self, client: Client) -> None:
        async with await client.stream(NAME, "Idle", client_streaming=True, timeout=0.01) as stream:
            with pytest.raises((DeadlineExceeded, RpcError)) as caught:
                await stream.receive()
        assert caught.value.code is Code.DEADLINE_EXCEEDED


class TestLoss:
    async def test_caller_that_gives_up_disturbs_nobody(self, client: Client, handlers: Handlers) -> None:
        async with asyncio.TaskGroup() as group:
            call = group.create_task(client.call(NAME, "Wait"))
            await handlers.entered.wait()
            call.cancel()
        handlers.release.set()
        assert await client.call(NAME, "Echo", b"alive") == b"alive"
        assert not client._calls

    async def test_all_calls_fail_when_the_connection_is_lost(self) -> None:
        lost: list[str] = []
        async with raw_server(on_lost=lambda error: lost.append(str(error))) as (peer, client):
            async with asyncio.TaskGroup() as group:
                calls = [group.create_task(self.unavailable(client)) for _ in range(3)]
                for _ in calls:
                    await peer.frame()
                peer.sock.close()
            with pytest.raises(Unavailable):
                await client.call(NAME, "Echo")
            assert isinstance(client.error, Unavailable)
        assert lost == ["receive: the peer has closed"]

    @staticmethod
    async def unavailable(client: Client) -> None:
        with pytest.raises(Unavailable):
            await client.call(NAME, "Wait")

    async def test_end_in_mid_frame_says_so(self) -> None:
        async with raw_server() as (peer, client), asyncio.TaskGroup() as group:
            group.create_task(self.unavailable(client))
            await peer.frame()
            await peer.send_bytes(b"\0\0\0\x05\0\0\0\1\2")
            peer.sock.close()
        assert "1 bytes short" in str(client.error)

    async def test_handlers_end_with_their_connection(self, handlers: Handlers) -> None:
        lost: list[str] = []
        async with raw_client(handlers, on_lost=lost.append) as (peer, server):
            await peer.send((1, REQUEST, 0, request("Wait")))
            await handlers.entered.wait()
            assert server.connections == ("c1",)
            peer.sock.close()
            await handlers.ended.wait()
            assert (handlers.how, lost, server.connections) == ("cancelled", ["c1"], ())

    async def test_detached_handlers_do_not(self, handlers: Handlers) -> None:
        lost = asyncio.Event()
        async with raw_client(handlers, on_lost=lambda _name: lost.set()) as (peer, _):
            await peer.send((1, REQUEST, 0, request("Detached")))
            await handlers.entered.wait()
            peer.sock.close()
            await lost.wait()
            handlers.release.set()
        assert handlers.how == "released"

    async def test_streams_end_with_their_connection(self) -> None:
        async with raw_server() as (peer, client), await client.stream(NAME, "Chat", client_streaming=True) as stream:
            await peer.frame()
            await peer.send((1, DATA, 0, b"last words"))
            peer.sock.close()
            assert await stream.receive() == b"last words"
            with pytest.raises(Unavailable):
                await stream.receive()
            with pytest.raises(Unavailable):
                await stream.send(b"x")

    async def test_close_fails_what_is_under_way(self, client: Client, handlers: Handlers) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self.unavailable(client))
            await handlers.entered.wait()
            client.close()


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


class TestHostilePeers:
    async def test_frames_nobody_asked_for_end_the_connection(self) -> None:
        async with raw_server() as (peer, client), asyncio.TaskGroup() as group:
            group.create_task(TestLoss.unavailable(client))
            await peer.frame()
            await peer.send(*[(99, RESPONSE, 0, b"")] * (MAX_STRAYS + 1))

    async def test_answer_that_cannot_be_decoded_fails_its_call(self) -> None:
        async with raw_server() as (peer, client), asyncio.TaskGroup() as group:
            call = group.create_task(failure(client, "Echo"))
            await peer.frame()
            await peer.send((1, RESPONSE, 0, b"\xff"))
        assert call.result().code is Code.INTERNAL

    async def test_data_on_a_unary_call_fails_it(self, handlers: Handlers) -> None:
        async with raw_client(handlers) as (peer, _):
            await peer.send((1, REQUEST, 0, request("Wait")), (1, DATA, 0, b"x"))
            assert code_of(await peer.frame()) == Code.INVALID_ARGUMENT
            await peer.send((3, REQUEST, 0, request("Now", b"x")))
            assert (await peer.frame()).stream == 3
        assert handlers.how in ("", "cancelled")

    async def test_oversize_frames_are_stepped_over(self, handlers: Handlers) -> None:
        async with raw_client(handlers) as (peer, _):
            await peer.send((1, REQUEST, 0, bytes(MAX_DATA + 1)), (3, REQUEST, 0, request("Now", b"x")))
            first, second = await peer.frame(), await peer.frame()
            assert (first.stream, code_of(first)) == (1, Code.RESOURCE_EXHAUSTED)
            assert (second.stream, code_of(second)) == (3, 0)


class TestServer:
    async def test_listens_names_and_never_renames(self, handlers: Handlers, tmp_path: Path) -> None:
        opened: list[str] = []
        path = str(tmp_path / "sock")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            async with Server(listener, [handlers.service()], on_open=opened.append, drain_budget=0) as server:
                for _ in range(3):
                    async with Client(self.dial(path)) as client:
                        await client.call(NAME, "Echo")
                ours, theirs = socket.socketpair()
                assert server.adopt(theirs, "c9") == "c9"
                with ours:
                    async with Client(self.dial(path)) as client:
                        await client.call(NAME, "Echo")
                    with pytest.raises(ValueError, match="c9"):
                        server.adopt(ours, "c9")
            assert opened == ["c1", "c2", "c3", "c9", "c10"]
            assert [call.connection for call in handlers.calls] == ["c1", "c2", "c3", "c10"]

    @staticmethod
    def dial(path: str) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(path)
        return sock

    async def test_refuses_other_users(self, handlers: Handlers, tmp_path: Path) -> None:
        path = str(tmp_path / "sock")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            stranger = frozenset({os.geteuid() + 1})
            async with Server(listener, [handlers.service()], allowed_uids=stranger), Client(self.dial(path)) as client:
                with pytest.raises(Unavailable):
                    await client.call(NAME, "Echo")

    async def test_close_lets_calls_finish_and_refuses_new_ones(self, handlers: Handlers) -> None:
        async with memory_pair([handlers.service()]) as (client, server), asyncio.TaskGroup() as group:
            call = group.create_task(client.call(NAME, "Wait", b"done"))
            await handlers.entered.wait()
            closing = group.create_task(server.close(5))
            while (await failure(client, "Nothing")).code is not Code.UNAVAILABLE:
                pass
            handlers.release.set()
            assert await call == b"done"
            await closing
            with pytest.raises(Unavailable):
                await client.call(NAME, "Echo")

    async def test_close_has_a_budget(self, handlers: Handlers) -> None:
        async with memory_pair([handlers.service()]) as (client, server), asyncio.TaskGroup() as group:
            group.create_task(TestLoss.unavailable(client))
            await handlers.entered.wait()
            await server.close(0.01)
        assert handlers.how == "cancelled"

    async def test_error_in_the_block_leaves_as_it_is(self, handlers: Handlers) -> None:
        with pytest.raises(ZeroDivisionError):
            async with memory_pair([handlers.service()]):
                raise ZeroDivisionError

    async def test_cancelled_server_closes_everything(self, handlers: Handlers) -> None:
        ours, theirs = socket.socketpair()
        async with Client(ours) as client, asyncio.TaskGroup() as group:
            ready = asyncio.Event()

            async def serve() -> None:
                async with asyncio.TaskGroup() as inner:
                    server = Server(None, [handlers.service()])
                    server.start(inner)
                    server.adopt(theirs)
                    ready.set()

            task = group.create_task(serve())
            await ready.wait()
            group.create_task(TestLoss.unavailable(client))
            await handlers.entered.wait()
            task.cancel()
        assert handlers.how == "cancelled"

    async def test_immediate_methods_are_unary(self) -> None:
        with pytest.raises(TypeError):
            _method(bytes, immediate=True, server_streaming=True)
