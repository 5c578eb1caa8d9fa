"""Our ttrpc against Go's and Rust's, both ways round, over unix sockets.

What the peers disagree on, with each other or with the letter of the protocol, is listed in docs/ttrpc.md; a test that has
to know says so where it does.
"""

import asyncio
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from integration.ttrpc.service import INTEROP, NAME, decode, encode
from kata_shimd.errors import Code, DeadlineExceeded, ResourceExhausted, Unavailable
from kata_shimd.ttrpc import Client, RpcError, Server
from kata_shimd.ttrpc.frames import DATA, RESPONSE
from kata_shimd.ttrpc.testing import RawPeer


def connect(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(path))
    return sock


@pytest.fixture
async def client(peer_server: Path) -> AsyncIterator[Client]:
    async with Client(connect(peer_server)) as made:
        yield made


async def invoke(client: Client, method: str, value: bytes = b"", **options: object) -> bytes:
    return decode(await client.call(NAME, method, encode(value), **options))  # type: ignore[arg-type]


async def test_peer_calls_us(peer: Path, language: str, tmp_path: Path) -> None:
    """The peer's client runs its list of cases against our server; each is a line of its output."""
    path = tmp_path / "ours.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        async with Server(listener, [INTEROP]):
            process = await asyncio.create_subprocess_exec(peer, "client", path, stdout=subprocess.PIPE)
            output, _ = await process.communicate()
    lines = output.decode().splitlines()
    assert [line for line in lines if not line.startswith("ok ")] == []
    assert process.returncode == 0
    assert len(lines) == (15 if language == "rust" else 16)


class TestUnary:
    async def test_echo(self, client: Client) -> None:
        assert await invoke(client, "Echo", b"hello") == b"hello"

    async def test_empty_message(self, client: Client) -> None:
        assert await client.call(NAME, "Echo", b"") == b""

    async def test_one_mebibyte(self, client: Client) -> None:
        value = bytes(range(256)) * 4096
        assert await invoke(client, "Echo", value) == value

    async def test_failure_keeps_code_and_message(self, client: Client) -> None:
        with pytest.raises(RpcError) as caught:
            await invoke(client, "Fail", b"this")
        assert (caught.value.code, caught.value.message) == (Code.FAILED_PRECONDITION, "refused this")

    async def test_unknown_method(self, client: Client) -> None:
        with pytest.raises(RpcError) as caught:
            await invoke(client, "Nothing")
        assert caught.value.code is Code.UNIMPLEMENTED

    async def test_unknown_service(self, client: Client, language: str) -> None:
        with pytest.raises(RpcError) as caught:
            await client.call("interop.v1.Nothing", "Echo")
        assert caught.value.code is (Code.INVALID_ARGUMENT if language == "rust" else Code.UNIMPLEMENTED)

    async def test_metadata(self, client: Client) -> None:
        metadata = {"Some-Key": ("a", "b"), "other": ("c",)}
        assert await invoke(client, "Metadata", b"some-key", metadata=metadata) == b"[a b]"

    async def test_deadline_travels(self, client: Client) -> None:
        assert await invoke(client, "Deadline") == b"none"
        assert await invoke(client, "Deadline", timeout=20) == b"20"

    async def test_timeout_ends_here_and_the_late_answer_is_dropped(self, client: Client) -> None:
        with pytest.raises((DeadlineExceeded, RpcError)) as caught:
            await invoke(client, "Hang", timeout=0.1)
        assert caught.value.code is Code.DEADLINE_EXCEEDED
        assert await invoke(client, "Echo", b"alive") == b"alive"

    async def test_oversize_request_is_refused_here(self, client: Client) -> None:
        with pytest.raises(ResourceExhausted):
            await invoke(client, "Echo", bytes(5 << 20))
        assert await invoke(client, "Echo", b"alive") == b"alive"

    async def test_thousand_at_once(self, client: Client) -> None:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(invoke(client, "Echo", b"%d" % number)) for number in range(1000)]
        assert [task.result() for task in tasks] == [b"%d" % number for number in range(1000)]


class TestStreams:
    async def test_client_streams(self, client: Client) -> None:
        async with await client.stream(NAME, "Sum", client_streaming=True) as stream:
            for number in range(10):
                await stream.send(encode(bytes(number)))
            assert decode(await stream.result()) == b"45"

    async def test_client_stream_without_a_message(self, client: Client) -> None:
        async with await client.stream(NAME, "Sum", client_streaming=True) as stream:
            assert decode(await stream.result()) == b"0"

    async def test_server_streams(self, client: Client) -> None:
        async with await client.stream(NAME, "Count", encode(bytes(50))) as stream:
            assert [decode(data) async for data in stream] == [b"%d" % number for number in range(50)]

    async def test_both_stream(self, client: Client) -> None:
        async with await client.stream(NAME, "Chat", client_streaming=True) as stream:
            for word in (b"one", b"", b"two"):
                await stream.send(encode(word))
                assert decode(await stream.receive() or b"") == word.upper()
            stream.end()
            assert await stream.receive() is None

    async def test_failure_in_mid_stream(self, client: Client) -> None:
        async with await client.stream(NAME, "Break", encode(b"")) as stream:
            assert decode(await stream.receive() or b"") == b"one"
            with pytest.raises(RpcError) as caught:
                await stream.receive()
            assert caught.value.code is Code.ABORTED


class TestPeersAsTheyAre:
    """Not promises but observations, on which lines of docs/ttrpc.md rest. When one fails, the page is out of date."""

    async def test_death_of_the_peer_fails_every_call(self, peer: Path, tmp_path: Path) -> None:
        path = tmp_path / "dying.sock"
        process = await asyncio.create_subprocess_exec(peer, "server", path, stdout=subprocess.PIPE)
        assert process.stdout is not None
        await process.stdout.readline()
        async with Client(connect(path)) as client, asyncio.TaskGroup() as group:
            calls = [group.create_task(_unavailable(client)) for _ in range(10)]
            await invoke(client, "Echo")
            process.kill()
        await process.wait()
        assert [call.result() for call in calls] == [Code.UNAVAILABLE] * 10

    async def test_oversize_frame(self, peer_server: Path, language: str) -> None:
        """Both throw the body away and answer on the stream, with codes of their own."""
        async with RawPeer(connect(peer_server)) as raw:
            await raw.send((1, 1, 0, bytes((4 << 20) + 1)))
            code = Code.INVALID_ARGUMENT if language == "rust" else Code.RESOURCE_EXHAUSTED
            assert await _code(raw) == (1, code)

    async def test_even_stream_id(self, peer_server: Path) -> None:
        async with RawPeer(connect(peer_server)) as raw:
            await raw.send((2, 1, 0, b""))
            assert await _code(raw) == (2, Code.INVALID_ARGUMENT)

    async def test_data_for_no_stream(self, peer_server: Path) -> None:
        async with RawPeer(connect(peer_server)) as raw:
            await raw.send((1, DATA, 0, b""))
            assert await _code(raw) == (1, Code.INVALID_ARGUMENT)

    async def test_unparsable_request(self, peer_server: Path) -> None:
        async with RawPeer(connect(peer_server)) as raw:
            await raw.send((1, 1, 0, b"\xff"))
            assert await _code(raw) == (1, Code.INVALID_ARGUMENT)

    async def test_unknown_type_is_ignored(self, peer_server: Path) -> None:
        async with RawPeer(connect(peer_server)) as raw:
            await raw.send((1, 9, 0, b"what"), (3, DATA, 0, b""))
            assert (await _code(raw))[0] == 3

    async def test_ids_need_not_increase(self, peer_server: Path, language: str) -> None:
        async with RawPeer(connect(peer_server)) as raw:
            await raw.send((5, 1, 0, b""))
            await _code(raw)
            await raw.send((3, 1, 0, b""))
            stream, code = await _code(raw)
            unknown_service = Code.INVALID_ARGUMENT if language == "rust" else Code.UNIMPLEMENTED
            assert (stream, code) == (3, unknown_service if language == "rust" else Code.INVALID_ARGUMENT)


async def _unavailable(client: Client) -> Code:
    with pytest.raises(Unavailable) as caught:
        await invoke(client, "Hang")
    return caught.value.code


async def _code(raw: RawPeer) -> tuple[int, int]:
    from kata_shimd.ttrpc.envelope import decode_response

    frame = await raw.frame()
    assert frame.type == RESPONSE
    status = decode_response(frame.data).status
    assert status is not None
    return frame.stream, status.code
