"""The server on both loops: misbehaving peers, accepting, naming, closing."""

import asyncio
import errno
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from ..errors import Code, Unavailable
from . import Client, Server
from .conftest import NAME, Handlers, code_of, failure, method, raw_client, raw_server, request, unavailable
from .frames import DATA, MAX_DATA, REQUEST, RESPONSE
from .protocol import MAX_STRAYS
from .testing import memory_pair


class TestHostilePeers:
    async def test_frames_nobody_asked_for_end_the_connection(self) -> None:
        async with raw_server() as (peer, client), asyncio.TaskGroup() as group:
            group.create_task(unavailable(client))
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

    async def test_tells_once_that_nobody_can_be_let_in_and_when_that_is_over(
        self, handlers: Handlers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Full(socket.socket):
            left = 3

            def accept(self) -> tuple[socket.socket, Any]:
                if self.left:
                    self.left -= 1
                    raise OSError(errno.EMFILE, "Too many open files")
                return super().accept()

        monkeypatch.setattr("kata_shimd.ttrpc.server._ACCEPT_PAUSE", 0.001)
        told: list[str] = []
        path = str(tmp_path / "sock")
        with Full(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            async with (
                Server(listener, [handlers.service()], on_accepting=told.append, drain_budget=0),
                Client(self.dial(path)) as client,
            ):
                await client.call(NAME, "Echo")
                async with Client(self.dial(path)) as second:
                    await second.call(NAME, "Echo")
        assert told == ["Too many open files", ""]

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
            group.create_task(unavailable(client))
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
            group.create_task(unavailable(client))
            await handlers.entered.wait()
            task.cancel()
        assert handlers.how == "cancelled"

    async def test_immediate_methods_are_unary(self) -> None:
        with pytest.raises(TypeError):
            method(bytes, immediate=True, server_streaming=True)
