"""The interpreter in a live daemon: real sockets and threads, a loop of each kind, no pod."""

import asyncio
import contextlib
import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from kata_shimd import log
from kata_shimd.debug import attach, attached, pods, session
from kata_shimd.debug.attached import Connection
from kata_shimd.debug.testing import POD, process_lines, write_ledger
from kata_shimd.errors import FailedPrecondition, Unavailable


class Stage:
    """A loop with an attach in it, and what it noted."""

    def __init__(self, directory):
        self.directory, self.notes, self.names = directory, [], {"answer": 42}
        self.ready, self.over = threading.Event(), asyncio.Event()

    async def serve(self, on):
        async with asyncio.TaskGroup() as group:
            self.loop = asyncio.get_running_loop()
            self.names["group"] = group
            daemon = attach.Daemon(
                self.loop, group, lambda: self.names, lambda event, **fields: self.notes.append((event, fields))
            )
            offered = attach.Attach(self.directory, daemon)
            if on:
                offered.turn_on()
            self.ready.set()
            await self.over.wait()
            offered.close()

    def dial(self):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(20)
        try:
            sock.connect(str(self.directory / attach.SOCKET))
        except OSError:
            sock.close()
            raise
        return Connection(sock)


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """Serves in this test's loop."""
    monkeypatch.setattr(session, "PATIENCE", 0.1)
    before = signal.getsignal(signal.SIGUSR2)
    yield Stage(tmp_path)
    signal.signal(signal.SIGUSR2, before)


async def with_client(stage, talk, *, on=True):
    """Serve, and let ``talk(connection)`` run in a thread beside the loop."""
    server = asyncio.create_task(stage.serve(on))  # noqa: TID251 - ended below
    await asyncio.to_thread(stage.ready.wait)

    def client():
        connection = stage.dial()
        with contextlib.closing(connection):
            return talk(connection)

    try:
        return await asyncio.to_thread(client)
    finally:
        stage.over.set()
        await server


def ran(connection, source):
    said = []
    done = connection.run(source, said.append)
    return done, "".join(said)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("answer", "42\n"),
        ("x = 1", ""),
        ("None", ""),
        ("print('hello')", "hello\n"),
        ("import asyncio; await asyncio.sleep(0, 'slept')", "'slept'\n"),
        ("async def f():\n    return 5\nawait f()", "5\n"),
        ("for i in range(2):\n    print(i)", "0\n1\n"),
        ("", ""),
    ],
)
async def test_a_statement_runs_and_its_value_is_shown(stage, source, says):
    assert await with_client(stage, lambda c: ran(c, source)) == (True, says)


async def test_names_and_the_last_value_stay(stage):
    def talk(connection):
        return [ran(connection, source)[1] for source in ("y = answer + 1", "y", "_ + 1")]

    assert await with_client(stage, talk) == ["", "43\n", "44\n"]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("def f(:", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("import asyncio\nraise asyncio.CancelledError", "CancelledError"),
        ("class Bad:\n    def __repr__(self):\n        raise ValueError('no')\nBad()", "ValueError: no"),
        ("'\\0' * (", "SyntaxError"),
    ],
)
async def test_what_fails_is_shown_and_the_daemon_goes_on(stage, source, says):
    def talk(connection):
        failed, said = ran(connection, source)
        return failed, said, ran(connection, "answer")

    failed, said, after = await with_client(stage, talk)
    assert failed is False and says in said and after == (True, "42\n")


async def test_a_traceback_shows_the_statement_and_not_us(stage):
    _, said = await with_client(stage, lambda c: ran(c, "def broken():\n    return 1 / 0\nbroken()"))
    assert "return 1 / 0" in said and "interpreter.py" not in said


async def test_other_output_is_not_a_sessions(stage, capsys):
    def talk(connection):
        stage.loop.call_soon_threadsafe(print, "of the daemon")
        return ran(connection, "print('of the session')")

    assert await with_client(stage, talk) == (True, "of the session\n")


async def test_long_values_are_cut(stage):
    _, said = await with_client(stage, lambda c: ran(c, "'x' * 1_000_000"))
    assert len(said) < 70_000 and said.endswith("... (1000002 characters)\n")


async def test_completion(stage):
    assert await with_client(stage, lambda c: c.complete("answ")) == ["answer"]


async def test_ctrl_c_cancels_what_is_awaited(stage):
    def talk(connection):
        connection._send({"do": "run", "source": "import asyncio\nprint('waits')\nawait asyncio.Event().wait()"})
        said = []
        replies = connection._replies()
        said.append(next(replies)["say"])
        connection.interrupt()
        assert connection.finish(said.append) is False
        return "".join(said), ran(connection, "answer")

    said, after = await with_client(stage, talk)
    assert "CancelledError" in said and after == (True, "42\n")


async def test_a_blocked_loop_is_told_with_what_blocks_it(stage):
    blocked, free = threading.Event(), threading.Event()

    def wait_for_somebody():
        blocked.set()
        free.wait(20)

    def talk(connection):
        stage.loop.call_soon_threadsafe(wait_for_somebody)
        assert blocked.wait(20)
        said = []
        connection._send({"do": "run", "source": "answer"})
        said.append(next(connection._replies())["say"])
        connection.stacks(said.append)
        free.set()
        return said, connection.finish(said.append)

    (waits, stacks, value), done = await with_client(stage, talk)
    assert "has not turned" in waits and "wait_for_somebody" in waits
    assert "wait_for_somebody" in stacks and "attached" in stacks
    assert value == "42\n" and done is True


async def test_a_statement_that_awaits_in_silence_is_not_a_loop_that_hangs(stage):
    silent = f"import asyncio\nawait asyncio.sleep({session.PATIENCE * 3})"
    assert await with_client(stage, lambda c: ran(c, silent)) == (True, "")


async def test_who_is_attached_to_a_daemon_that_hangs_is_on_record_and_in_the_log_with_the_pod(stage, caplog):
    blocked, free = threading.Event(), threading.Event()
    caplog.handler.setFormatter(log.ContextFormatter())

    def wait_for_somebody():
        blocked.set()
        free.wait(20)

    def talk(connection):
        stage.loop.call_soon_threadsafe(wait_for_somebody)
        assert blocked.wait(20)
        connection.stacks(lambda _text: None)
        noted = [event for event, _ in stage.notes]
        free.set()
        return noted

    token = log.pod.set("sandbox-7")
    try:
        assert await with_client(stage, talk) == ["attached"]
    finally:
        log.pod.reset(token)
    (line,) = (line for line in caplog.text.splitlines() if "has the interpreter" in line)
    assert line.endswith(" pod=sandbox-7")


async def test_sessions_are_noted(stage):
    await with_client(stage, lambda c: ran(c, "answer"))
    who = {"pid": os.getpid(), "uid": os.geteuid()}
    assert stage.notes[0] == ("attached", who)


async def test_a_hang_up_cancels_the_statement(stage):
    seen = threading.Event()
    stage.names["gone"] = lambda: stage.loop.call_soon(seen.set)

    def talk(connection):
        source = "import asyncio\nprint(1)\ntry:\n    await asyncio.Event().wait()\nfinally:\n    gone()"
        connection._send({"do": "run", "source": source})
        next(connection._replies())
        connection.close()
        return seen.wait(20)

    assert await with_client(stage, talk)


@pytest.mark.parametrize("line", [b"no json\n", b'{"do": "dance"}\n', b"[]\n", b'{"do": "run"}\n', b"x" * (5 << 20)])
async def test_nonsense_ends_the_session_and_nothing_else(stage, line):
    def talk(connection):
        with contextlib.suppress(OSError):
            connection._sock.sendall(line)
        with pytest.raises(Unavailable):
            connection.finish(print)
        other = stage.dial()
        with contextlib.closing(other):
            return ran(other, "answer")

    assert await with_client(stage, talk) == (True, "42\n")


async def test_another_user_is_refused(stage, monkeypatch):
    monkeypatch.setattr(attach, "_UCRED", _Ucred((1, 12345, 12345)))

    def talk(connection):
        with pytest.raises(Unavailable):
            connection.run("answer", print)
        return True

    assert await with_client(stage, talk)


class _Ucred:
    size = 12

    def __init__(self, who):
        self._who = who

    def unpack(self, _raw):
        return self._who


async def test_it_is_off_until_the_signal(stage):
    server = asyncio.create_task(stage.serve(False))  # noqa: TID251 - ended below
    await asyncio.to_thread(stage.ready.wait)
    with pytest.raises(ConnectionRefusedError):
        stage.dial()
    assert (stage.directory / attach.SOCKET).stat().st_mode & 0o777 == 0o600
    os.kill(os.getpid(), signal.SIGUSR2)

    def talk():
        with contextlib.closing(stage.dial()) as connection:
            return ran(connection, "answer")

    assert await asyncio.to_thread(talk) == (True, "42\n")
    stage.over.set()
    await server


async def test_a_signal_that_comes_before_there_is_a_socket_is_not_lost(stage, monkeypatch):
    bind = attach._bind

    def signalled_first(sock, path):
        os.kill(os.getpid(), signal.SIGUSR2)
        bind(sock, path)

    monkeypatch.setattr(attach, "_bind", signalled_first)
    assert await with_client(stage, lambda c: ran(c, "answer"), on=False) == (True, "42\n")


# --- the command's side of it ------------------------------------------------------------------------------------------


def pod_of(directory, *, pid):
    """A running pod in a run directory, whose daemon is this process, or one that has ended."""
    start = int(Path(f"/proc/{os.getpid()}/stat").read_text().rsplit(")", 1)[1].split()[19])
    write_ledger(directory, *process_lines(1, "daemon", pid, start), {"op": "phase", "phase": "running"})
    return pods.load(directory, POD)


def test_no_daemon_is_said_so(tmp_path):
    with pytest.raises(FailedPrecondition, match="the pod is crashed"):
        attached.connect(pod_of(tmp_path, pid=1))


def test_a_pod_whose_configuration_allows_none(tmp_path):
    with pytest.raises(FailedPrecondition, match="configuration allows none"):
        attached.connect(pod_of(tmp_path, pid=os.getpid()))


def test_a_daemon_that_ignores_the_signal_as_yet_is_asked_again(tmp_path):
    asked, listens = [], 3
    pod = pod_of(tmp_path, pid=os.getpid())
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    attach._bind(sock, pod.directory / attach.SOCKET)

    def hear(*_):
        asked.append(1)
        if len(asked) == listens:
            sock.listen()

    before = signal.signal(signal.SIGUSR2, hear)
    try:
        with sock, contextlib.closing(attached.connect(pod)):
            assert len(asked) >= listens
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_a_daemon_that_takes_no_signal_is_told_of_in_time(tmp_path, monkeypatch):
    monkeypatch.setattr(attached, "ANSWER_SECONDS", 0.1)
    before = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    try:
        pod = pod_of(tmp_path, pid=os.getpid())
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        attach._bind(sock, pod.directory / attach.SOCKET)
        begin = time.monotonic()
        with sock, pytest.raises(Unavailable, match="ran no Python code"):
            attached.connect(pod)
        assert time.monotonic() - begin < 5
    finally:
        signal.signal(signal.SIGUSR2, before)
