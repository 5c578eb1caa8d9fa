"""The zygote with a stand-in for the daemon: real sockets and forks, no launcher."""

import array
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

import pytest

import kata_shimd
from kata_shimd import zygote
from kata_shimd.errors import FailedPrecondition, InvalidArgument
from kata_shimd.zygote import FDS, Installation, Zygote, parse

ASKED = {"v": 1, "version": kata_shimd.__version__, "python": sys.executable, "argv": ["--id", "x"]}


@pytest.fixture
def served(tmp_path, request):
    """A zygote in a process of its own. Its daemon writes what it sees to its stderr, and ends."""
    made = Zygote(tmp_path, request.param if hasattr(request, "param") else tell)
    pid = os.fork()
    if pid == 0:
        try:
            made.serve()
        finally:
            os._exit(0)
    yield made.path
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    made.close()


def tell(argv, gate):
    gate()
    import random

    facts = {
        "argv": list(argv),
        "fds": sorted(int(fd.name) for fd in Path("/proc/self/fd").iterdir()),
        "environ": dict(os.environ),
        "sid": os.getsid(0) == os.getpid(),
        "cwd": str(Path.cwd()),
        "umask": os.umask(0),
        "listen": os.read(3, 100).decode(),
        "random": random.random(),
        "hex": os.urandom(8).hex(),
        "comm": Path("/proc/self/comm").read_text().strip(),
        "mnt": Path("/proc/self/ns/mnt").readlink().name,
        "chld": str(signal.getsignal(signal.SIGCHLD)),
        "listen_pid": os.environ["LISTEN_PID"] == str(os.getpid()),
    }
    os.write(2, json.dumps(facts).encode())
    sys.exit(7)


class Asked:
    """One request, as a launcher makes it."""

    def __init__(self, path, said=ASKED, *, fds=7, environ=b"A=1\0B=x=y\0LISTEN_PID=1\0"):
        self.ends = {}
        given = [self._fd(name, environ) for name in (*FDS, "more")][:fds]
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(20)
        self.sock.connect(str(path))
        raw = said if isinstance(said, bytes) else json.dumps(said).encode()
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", given))] if given else []
        self.sock.sendmsg([raw], control)
        for fd in given:
            os.close(fd)
        self.answer = json.loads(self.sock.recv(4096))

    def _fd(self, name, environ):
        if name == "environ":
            fd = os.memfd_create(name)
            os.write(fd, environ)
            return fd
        read, write = os.pipe()
        mine, theirs = (read, write) if name in ("stderr", "ready") else (write, read)
        self.ends[name] = mine
        if name == "listen":
            os.write(write, b"the listening socket")
        return theirs

    def let_go(self):
        os.write(self.ends["gate"], b"!")

    def said(self):
        """All of the child's stderr."""
        out = bytearray()
        while data := os.read(self.ends["stderr"], 65536):
            out += data
        return out.decode()

    def close(self):
        for fd in self.ends.values():
            os.close(fd)
        self.sock.close()


@pytest.fixture
def ask(served):
    made = []

    def asked(*args, **named):
        made.append(Asked(served, *args, **named))
        return made[-1]

    yield asked
    for one in made:
        one.close()


def test_an_orphan_is_not_the_zygotes_child(ask):
    plain, orphan = ask(), ask({**ASKED, "orphan": True})
    parents = [
        Path(f"/proc/{one.answer['pid']}/stat").read_text().rpartition(")")[2].split()[1] for one in (plain, orphan)
    ]
    assert parents[0] != parents[1]
    orphan.let_go()
    assert json.loads(orphan.said())["argv"] == ["--id", "x"]


def test_a_child_becomes_the_daemon_once_it_is_let_go(ask):
    asked = ask()
    assert asked.answer["pid"] > 1
    asked.let_go()
    facts = json.loads(asked.said())
    assert facts["argv"] == ["--id", "x"]
    assert set(facts["fds"]) - {0, 1, 2, 3, 4, 5} == {6} or set(facts["fds"]) == {0, 1, 2, 3, 4, 5, 6}, (
        "6 lists the directory"
    )
    assert {name: facts["environ"][name] for name in ("A", "B")} == {"A": "1", "B": "x=y"}
    assert set(facts["environ"]) == {"A", "B", "LISTEN_PID"} and facts["listen_pid"]
    assert facts["listen"] == "the listening socket"
    assert (facts["sid"], facts["cwd"], facts["umask"], facts["comm"]) == (True, "/", 0o077, "kata-pod")
    assert facts["mnt"] != Path("/proc/self/ns/mnt").readlink().name
    assert facts["chld"] == str(signal.SIG_DFL)


def test_siblings_have_randomness_of_their_own(ask):
    facts = []
    for _ in range(3):
        asked = ask()
        asked.let_go()
        facts.append(json.loads(asked.said()))
    assert len({one["random"] for one in facts}) == len({one["hex"] for one in facts}) == 3


def test_a_child_that_is_not_let_go_has_done_nothing(ask):
    asked = ask()
    os.close(asked.ends.pop("gate"))
    assert asked.said() == ""
    eventually_gone(asked.answer["pid"])


def eventually_gone(pid):
    """The zygote leaves its children to the kernel: gone is gone, not a zombie."""
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline
        os.sched_yield()


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        (b"no json", "no JSON"),
        (b"[]", "not a request"),
        ({**ASKED, "v": 2}, "not a request"),
        ({**ASKED, "argv": [1]}, "not a request"),
        ({**ASKED, "version": "0.0.9"}, f"this zygote is {kata_shimd.__version__}"),
        ({**ASKED, "python": "/elsewhere/python3"}, "this zygote is"),
    ],
)
def test_what_is_refused_is_answered_and_the_next_is_served(ask, said, cause):
    assert cause in ask(said).answer["error"]
    assert "pid" in ask().answer


@pytest.mark.parametrize("count", [0, 3, 6])
def test_too_few_descriptors_are_refused(ask, count):
    assert f"{count} descriptors instead of 7" in ask(fds=count).answer["error"]
    assert "pid" in ask().answer


def test_one_that_says_nothing_holds_nobody_up_for_long(served, ask):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as silent:
        silent.connect(str(served))
        assert "pid" in ask().answer


def test_one_that_goes_at_once_is_nothing(served, ask):
    for _ in range(20):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as hasty:
            hasty.connect(str(served))
    assert "pid" in ask().answer


def fail(argv, gate):
    gate()
    raise ValueError("a bug of ours")


@pytest.mark.parametrize("served", [fail], indirect=True)
def test_a_failure_is_on_the_daemons_stderr_and_the_zygote_lives(ask):
    asked = ask()
    asked.let_go()
    assert "ValueError: a bug of ours" in asked.said()
    assert "pid" in ask().answer


def test_the_socket_is_ours_alone_and_one_zygote_is_enough(served):
    assert served.stat().st_mode & 0o777 == 0o600
    with pytest.raises(FailedPrecondition, match="another zygote listens there"):
        zygote.listen(served)


def test_a_dead_ones_socket_is_replaced(tmp_path):
    first = zygote.listen(tmp_path / "s")
    first.close()
    with zygote.listen(tmp_path / "s"):
        pass


def test_a_replaced_package_makes_it_stale(tmp_path, monkeypatch):
    (package := tmp_path / "__init__.py").write_text("")
    monkeypatch.setattr(kata_shimd, "__file__", str(package))
    installation = Installation()
    installation.check(parse(json.dumps(ASKED).encode()))
    package.unlink()
    assert installation.stale
    package.write_text("")
    with pytest.raises(FailedPrecondition, match="replaced"):
        installation.check(parse(json.dumps(ASKED).encode()))


def test_a_request_without_words_is_one():
    assert parse(json.dumps({**ASKED, "argv": []}).encode()).argv == ()
    with pytest.raises(InvalidArgument):
        parse(b"\xff")


def test_what_is_warmed_survives_a_fork():
    """No thread, no loop, no socket; in an interpreter of its own, since this one has had many."""
    import subprocess

    code = """
import sys, threading, os
from kata_shimd import zygote
main = zygote.warm()
kinds = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")]
assert threading.active_count() == 1, threading.enumerate()
assert not [kind for kind in kinds if kind.startswith(("socket:", "anon_inode:"))], kinds
assert "grpclib" not in sys.modules and main.__module__ == "kata_shimd.daemon"
"""
    subprocess.run([sys.executable, "-c", code], check=True)
