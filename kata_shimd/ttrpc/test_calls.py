"""Unary calls on both loops: replies and failures, time, and the loss of either end."""

import asyncio

import pytest

from ..errors import Code, DeadlineExceeded, ResourceExhausted, Unavailable
from . import Client, RpcError
from .channel import READ_SIZE
from .conftest import NAME, Handlers, code_of, failure, raw_client, raw_server, request, unavailable
from .envelope import Detail
from .frames import DATA, MAX_DATA, REQUEST, RESPONSE, pack
from .service import now


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
    async def test_a_reset_with_bytes_still_to_be_read_is_noticed(self) -> None:
        """As when QEMU is killed with requests unread, after it sent more than one read takes."""
        async with raw_server() as (peer, client), asyncio.timeout(5), asyncio.TaskGroup() as group:
            group.create_task(unavailable(client))
            await asyncio.sleep(0)  # it is sent, and nobody will read it
            peer.sock.send(pack(1, RESPONSE, 0, bytes(3 * READ_SIZE))[: 2 * READ_SIZE])
            peer.sock.close()
        assert "reset" in str(client.error)

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
                calls = [group.create_task(unavailable(client)) for _ in range(3)]
                for _ in calls:
                    await peer.frame()
                peer.sock.close()
            with pytest.raises(Unavailable):
                await client.call(NAME, "Echo")
            assert isinstance(client.error, Unavailable)
        assert lost == ["receive: the peer has closed"]

    async def test_end_in_mid_frame_says_so(self) -> None:
        async with raw_server() as (peer, client), asyncio.TaskGroup() as group:
            group.create_task(unavailable(client))
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
            group.create_task(unavailable(client))
            await handlers.entered.wait()
            client.close()
