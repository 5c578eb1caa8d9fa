"""The monitor against a scripted QEMU: errors keep their words, waits end, events are handed on, lines are bounded."""

import asyncio
import contextlib
import json
import os
import socket

import pytest

from kata_shimd.errors import DeadlineExceeded, VmFailed
from kata_shimd.vm import monitor as subject
from kata_shimd.vm import sockets
from kata_shimd.vm.monitor import Monitor

GREETING = {"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""}, "capabilities": []}}


class Qemu:
    """The far end of one QMP connection: greets, negotiates, then answers by ``commands`` (name → reply or None)."""

    def __init__(self, path, commands=None, greeting=GREETING):
        self._listening = sockets.listen(path)
        self._listening.settimeout(5)
        self.path, self.commands, self.greeting = path, commands or {}, greeting
        self.asked, self.words, self.fds, self.accepted = [], {}, [], asyncio.Event()

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        self._listening.close()
        with contextlib.suppress(AttributeError):
            self.connection.close()

    async def serve(self):
        self._listening.setblocking(False)
        self.connection, _ = await asyncio.get_running_loop().sock_accept(self._listening)
        self.accepted.set()
        self.say(self.greeting)
        buffer = b""
        while data := await self._receive():
            commands, buffer = _objects(buffer + data)
            for command in commands:
                self._answer(command)

    async def _receive(self):
        ready = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(self.connection, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_reader(self.connection)
        data, fds, _, _ = socket.recv_fds(self.connection, 65536, 4)
        self.fds += fds
        return data

    def _answer(self, command):
        self.asked.append(command["execute"])
        self.words[command["execute"]] = command.get("arguments")
        reply = {"return": {}}
        if command["execute"] != "qmp_capabilities":
            reply = self.commands.get(command["execute"], {"return": {}})
        if callable(reply):
            reply = reply(self)
        if reply is not None:
            self.say({**reply, **{key: command[key] for key in ("id",) if key in command}})

    def say(self, message):
        raw = message if isinstance(message, bytes) else json.dumps(message).encode() + b"\r\n"
        with contextlib.suppress(OSError):
            self.connection.sendall(raw)


def _objects(buffer):
    """The whole JSON objects in ``buffer`` and the rest; qemu.qmp puts nothing between them."""
    decoder, found, text = json.JSONDecoder(), [], buffer.decode().lstrip()
    while text:
        try:
            command, end = decoder.raw_decode(text)
        except ValueError:
            break
        found.append(command)
        text = text[end:].lstrip()
    return found, text.encode()


@contextlib.asynccontextmanager
async def connected(path, commands=None, timeout=5.0):
    events = []
    async with Qemu(path, commands) as qemu, asyncio.TaskGroup() as group:
        serving = group.create_task(qemu.serve())
        monitor = await Monitor.connect(path, lambda name, data: events.append((name, data)), timeout=timeout)
        try:
            yield monitor, qemu, events
        finally:
            await monitor.close()
            serving.cancel()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "qmp.sock"


@pytest.mark.parametrize("last", [b"{nonsense\r\n", b"\x80\r\n", b"[" * 100_000 + b"\r\n", None])
def test_a_qemu_that_ends_as_soon_as_it_has_answered(path, run, last):
    async def body():
        async with Qemu(path) as qemu, asyncio.TaskGroup() as group:
            group.create_task(_greet_and_go(qemu, last))
            with pytest.raises(VmFailed):
                monitor = await Monitor.connect(path, lambda *_: None, timeout=5)
                try:
                    await monitor.status()
                finally:
                    await monitor.close()

    run(body())


async def _greet_and_go(qemu, last):
    """Both answers and the end in one piece, so that all are there when the negotiation is looked at."""
    qemu._listening.setblocking(False)
    qemu.connection, _ = await asyncio.get_running_loop().sock_accept(qemu._listening)
    qemu.say(json.dumps(GREETING).encode() + b"\r\n")
    command = json.loads(await qemu._receive())
    qemu.say(json.dumps({"return": {}, "id": command.get("id")}).encode() + b"\r\n" + (last or b""))
    qemu.connection.close()


def test_a_command_and_its_answer(path, run):
    async def body():
        async with connected(path, {"query-status": {"return": {"status": "running"}}}) as (monitor, qemu, _):
            return await monitor.status(), qemu.asked

    assert run(body()) == ("running", ["qmp_capabilities", "query-status"])


def test_a_refusal_keeps_its_class_and_description(path, run):
    refusal = {"error": {"class": "DeviceNotFound", "desc": "Device 'net1' not found"}}

    async def body():
        async with connected(path, {"device_del": refusal}) as (monitor, _, _):
            with pytest.raises(VmFailed) as failure:
                await monitor.execute("device_del", {"id": "net1"})
            return str(failure.value), await monitor.execute("query-name")

    assert run(body()) == ("qmp device_del: net1: DeviceNotFound: Device 'net1' not found", {})


def test_silence_is_bounded_and_leaves_the_monitor_usable(path, run):
    async def body():
        async with connected(path, {"stop": None}) as (monitor, _, _):
            with pytest.raises(DeadlineExceeded, match=r"qmp stop: no answer in 0.05 s"):
                await monitor.execute("stop", timeout=0.05)
            return await monitor.execute("cont")

    assert run(body()) == {}


def test_a_stuck_command_holds_up_the_next_only_for_its_own_deadline(path, run):
    async def body():
        async with connected(path, {"migrate": None}) as (monitor, qemu, _):
            async with asyncio.TaskGroup() as group:
                group.create_task(late(monitor.execute("migrate", timeout=0.3)))
                await asyncio.sleep(0)
                await late(monitor.execute("query-name", timeout=0.05))
            return qemu.asked

    async def late(work):
        with pytest.raises(DeadlineExceeded):
            await work

    assert run(body()) == ["qmp_capabilities", "migrate"]


def test_a_qemu_that_dies_in_the_middle(path, run):
    def die(qemu):
        qemu.connection.shutdown(socket.SHUT_RDWR)

    async def body():
        async with connected(path, {"stop": die}) as (monitor, _, _):
            with pytest.raises(VmFailed, match="it may have been done"):
                await monitor.execute("stop")
            await monitor.ended(5)
            with pytest.raises(VmFailed):
                await monitor.execute("cont")

    run(body())


def test_no_greeting(path, run):
    async def body():
        with sockets.listen(path), pytest.raises(DeadlineExceeded, match=r"no greeting in 0.05 s"):
            await Monitor.connect(path, print, timeout=0.05)

    run(body())


def test_a_qemu_that_ended_before_its_greeting(path, run):
    async def body():
        async with Qemu(path, greeting=b"") as qemu, asyncio.TaskGroup() as group:
            serving = group.create_task(qemu.serve())
            with pytest.raises(VmFailed, match="connect QMP"):
                async with asyncio.timeout(5):
                    group.create_task(hang_up(qemu))
                    await Monitor.connect(path, print, timeout=5)
            serving.cancel()

    async def hang_up(qemu):
        await qemu.accepted.wait()
        qemu.connection.shutdown(socket.SHUT_RDWR)

    run(body())


@pytest.mark.parametrize(
    "nonsense",
    [b"not json\r\n", b"[1, 2]\r\n", b'{"QMP": 5}\r\n', b"[" * 200_000 + b"\r\n", b'{"x": "' + b"y" * (2 << 20)],
    ids=["text", "list", "shape", "deep", "long"],
)
def test_nonsense_instead_of_a_greeting(path, run, nonsense, descriptors):
    async def body():
        async with Qemu(path, greeting=b"") as qemu, asyncio.TaskGroup() as group:
            serving = group.create_task(qemu.serve())
            group.create_task(speak(qemu))
            with pytest.raises(VmFailed, match="connect QMP"):
                await Monitor.connect(path, print, timeout=5)
            serving.cancel()

    async def speak(qemu):
        await qemu.accepted.wait()
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            await loop.sock_sendall(qemu.connection, nonsense)

    before = descriptors()
    run(body())
    assert descriptors() == before


def test_an_absurd_line_breaks_the_connection_and_not_the_daemon(path, run):
    async def body():
        async with connected(path) as (monitor, qemu, events):
            loop = asyncio.get_running_loop()
            with contextlib.suppress(OSError):
                await loop.sock_sendall(qemu.connection, b'{"event": "' + b"x" * (subject.MAX_LINE + 10) + b'"}\r\n')
            await monitor.ended(5)
            with pytest.raises(VmFailed):
                await monitor.status()
            return events

    assert run(body()) == []


def test_events_are_handed_on_and_others_dropped(path, run):
    async def body():
        async with connected(path) as (monitor, qemu, events):
            stamp = {"timestamp": {"seconds": 1, "microseconds": 0}}
            qemu.say({"event": "RTC_CHANGE", "data": {"offset": 1}, **stamp})
            qemu.say({"event": "GUEST_PANICKED", "data": {"action": "pause"}, **stamp})
            qemu.say({"event": "STOP", **stamp})
            qemu.say({"event": "SHUTDOWN", "data": [1], **stamp})
            qemu.connection.shutdown(socket.SHUT_RDWR)
            await monitor.ended(5)
            return events

    assert run(body()) == [("GUEST_PANICKED", {"action": "pause"}), ("STOP", {}), ("SHUTDOWN", {})]


def test_unplugging_waits_for_the_guest_and_hears_an_event_that_is_faster_than_the_answer(path, run):
    def deleted(qemu):
        for device in ("other", "net1"):
            event = {"event": "DEVICE_DELETED", "data": {"device": device, "path": "/x"}}
            qemu.say({**event, "timestamp": {"seconds": 1, "microseconds": 0}})
        return {"return": {}}

    async def body():
        async with connected(path, {"device_del": deleted}) as (monitor, _, _):
            await monitor.device_del("net1", timeout=5)
            with pytest.raises(DeadlineExceeded, match="device_del: net2"):
                await monitor.device_del("net2", timeout=0.05)

    run(body())


def test_a_descriptor_is_sent_on_any_loop(path, tmp_path, run):
    """The library's own way fails under uvloop (`libs.md` §2)."""
    (tmp_path / "file").write_text("it is this one")

    async def body():
        async with connected(path) as (monitor, qemu, _):
            with (tmp_path / "file").open() as file:
                await monitor.send_fd("fd0", file.fileno())
            (received,) = qemu.fds
            with os.fdopen(received) as file:
                return file.read(), qemu.asked

    assert run(body()) == ("it is this one", ["qmp_capabilities", "getfd"])
