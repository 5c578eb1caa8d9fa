"""A child forked ahead of its request, and the rehearsal that it has behind it: real forks, sockets and namespaces."""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kata_shimd import newborn, rehearsal
from kata_shimd.test_zygote import ASKED, Asked, eventually_gone, tell
from kata_shimd.zygote import Zygote

#: poll(2) as /proc/PID/syscall has it.
POLL = {"7", "73"}


def tell_that_ahead(argv, gate):
    tell([*argv, "ahead"], gate)


def prepared():
    return tell_that_ahead


class Node:
    """A zygote in a process of its own, and the child that it has forked ahead."""

    def __init__(self, path, prepare=prepared):
        made = Zygote(path, tell, prepare)
        self.path, self._asked = made.path, []
        self.pid = os.fork()
        if self.pid == 0:
            try:
                made.serve()
            finally:
                os._exit(0)
        made._listener.close()

    def ahead(self):
        """The child that waits, as soon as there is one."""
        return until(lambda: next((child for child in self.children() if waits(child)), None))

    def children(self):
        return {int(child) for child in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()}

    def ask(self, *args, **named):
        self._asked.append(Asked(self.path, *args, **named))
        return self._asked[-1]

    def close(self):
        for one in self._asked:
            one.close()
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def until(found):
    deadline = time.monotonic() + 20
    while not (value := found()):
        assert time.monotonic() < deadline
        os.sched_yield()
    return value


def waits(pid):
    try:
        proc = Path(f"/proc/{pid}")
        return (proc / "comm").read_text() == "kata-spare\n" and (proc / "syscall").read_text().split()[0] in POLL
    except OSError:
        return False


@pytest.fixture
def node(tmp_path):
    made = Node(tmp_path)
    yield made
    made.close()


def test_a_request_is_given_to_the_child_ahead_and_the_next_does_not_wait_for_another(node):
    ahead = node.ahead()
    first, second = node.ask(), node.ask()
    assert first.answer["pid"] == ahead != second.answer["pid"]
    for asked in (first, second):
        asked.let_go()
    assert json.loads(first.said())["argv"] == ["--id", "x", "ahead"]
    assert json.loads(second.said())["argv"] == ["--id", "x"]


def test_it_becomes_what_a_plain_fork_becomes(node):
    ahead = node.ahead()
    one, other = node.ask(), node.ask()
    assert one.answer["pid"] == ahead
    for asked in (one, other):
        asked.let_go()
    facts, others = json.loads(one.said()), json.loads(other.said())
    for ours in (facts, others):
        for mine in ("random", "hex", "mnt", "argv"):
            assert ours.pop(mine)
        assert ours["environ"].pop("LISTEN_PID")
    assert facts == others


def test_when_it_was_taken_another_comes(node):
    ahead = node.ahead()
    node.ask()
    assert node.ahead() != ahead


def test_an_orphan_is_forked_anew(node):
    ahead = node.ahead()
    assert node.ask({**ASKED, "orphan": True}).answer["pid"] != ahead
    assert node.ahead() == ahead


def test_what_is_refused_costs_no_child(node):
    ahead = node.ahead()
    assert "error" in node.ask({**ASKED, "version": "0"}).answer
    assert node.ask().answer["pid"] == ahead


def test_one_that_says_nothing_or_goes_at_once_costs_no_child(node):
    ahead = node.ahead()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as silent:
        silent.connect(str(node.path))
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as hasty:
            hasty.connect(str(node.path))
        assert node.ask().answer["pid"] == ahead


@pytest.mark.parametrize("count", [0, 6, 8])
def test_other_descriptors_than_are_asked_for_cost_no_child(node, count):
    ahead = node.ahead()
    assert "error" in node.ask(fds=count).answer
    assert node.ask().answer["pid"] == ahead


def test_one_that_was_killed_is_only_slower(node):
    ahead = node.ahead()
    os.kill(ahead, signal.SIGKILL)
    eventually_gone(ahead)
    asked = node.ask()
    asked.let_go()
    assert json.loads(asked.said())["argv"] == ["--id", "x"]


def test_it_ends_with_its_zygote(tmp_path):
    node = Node(tmp_path)
    ahead = node.ahead()
    node.close()
    eventually_gone(ahead)


def test_one_that_is_not_let_go_ends(node):
    node.ahead()
    asked = node.ask()
    os.close(asked.ends.pop("gate"))
    assert asked.said() == ""
    eventually_gone(asked.answer["pid"])


def never_ready():
    signal.pause()


def broken():
    raise ValueError("a bug of ours")


@pytest.mark.parametrize("prepare", [never_ready, broken])
def test_nobody_waits_for_one_that_is_not_ready(tmp_path, prepare):
    node = Node(tmp_path, prepare)
    try:
        until(lambda: node.children() or prepare is broken)
        ahead = node.children()
        asked = node.ask()
        asked.let_go()
        assert json.loads(asked.said())["argv"] == ["--id", "x"]
    finally:
        node.close()
    for child in ahead:
        eventually_gone(child)


def test_one_that_fails_before_it_was_let_go_waits_to_say_why(monkeypatch):
    def fails():
        raise OSError("no namespace")

    monkeypatch.setattr(newborn, "_settle", fails)
    gate, opened = os.pipe()
    os.write(opened, b"!")
    with pytest.raises(OSError, match="no namespace"):
        newborn._begin([], gate, tell)
    with pytest.raises(BrokenPipeError):
        os.write(opened, b"!")
    os.close(opened)


# --- the rehearsal ---------------------------------------------------------------------------------------------------


def state():
    root, fds = logging.getLogger(), [fd for fd in Path("/proc/self/fd").iterdir() if fd.exists()]
    return {
        "fds": {fd.name: str(fd.readlink()) for fd in fds},
        "mnt": str(Path("/proc/self/ns/mnt").readlink()),
        "cwd": Path.cwd(),
        "signals": [
            signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
        ],
        "log": (root.handlers[:], root.level, logging.raiseExceptions),
    }


def in_process_of_its_own(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


REHEARSED = """
from kata_shimd import rehearsal
from kata_shimd.test_spare import state
import os
os.chdir({cwd!r})
before = state()
rehearsal.in_zygote()
assert state() == before, (before, state())
"""


def test_a_rehearsal_leaves_the_zygote_as_it_was(tmp_path):
    assert in_process_of_its_own(REHEARSED.format(cwd=str(tmp_path))).stderr == ""


def test_where_there_can_be_no_stage_there_is_a_warning_and_no_rehearsal(monkeypatch, caplog):
    monkeypatch.setattr(rehearsal, "_libc", type("Refuses", (), {"unshare": staticmethod(lambda _: -1)}))
    rehearsal.in_zygote()
    assert "no rehearsal" in caplog.text


def test_a_childs_loop_is_the_daemons():
    done = in_process_of_its_own("""
import uvloop
from kata_shimd import rehearsal
main = rehearsal.in_child()
loop = main.keywords["loop"]
assert type(loop) is uvloop.Loop and not loop.is_closed() and not loop.is_running()
async def answer(): return 42
assert loop.run_until_complete(answer()) == 42
""")
    assert done.stderr == ""


def test_nothing_is_rehearsed_that_starts_something():
    """Whatever this machine's configuration says."""
    from kata_shimd.config import load
    from kata_shimd.config.model import AttachSetting, Keeping

    loaded = load(None, b'[shimd]\nkeeper = "auto"\nattach = "always"\n', None, {}, search=())
    shimd = rehearsal._harmless(loaded).config.shimd
    assert (shimd.keeper, shimd.attach) == (Keeping.OFF, AttachSetting.SIGNAL)
