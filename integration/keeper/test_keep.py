"""The launcher's keep mode alone: no machine, and daemons that are a few lines of script."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.conftest import PREFIX
from integration.harness.process import find
from integration.harness.scale import SCALE
from integration.harness.waiting import eventually
from kata_shimd import fds
from kata_shimd.ledger import Kind, Ledger, Phase

LAUNCHER = PREFIX / "bin/containerd-shim-kata-v2"
SOON = 10.0 * SCALE

#: Waits until it is told to serve, says what it was given ...
SAYS = """
import json, os, pathlib, signal, sys
from kata_shimd import fds
held = fds.take_all(fds.adopt(os.environ)["keeper"])
if held is None:
    sys.exit(0)
nice = [os.environ["KATA_SHIMD_NICE"], os.getpriority(os.PRIO_PROCESS, 0)]
said = {"pid": os.getpid(), "nice": nice, "held": sorted(held)}
said |= {"files": {name: os.readlink(f"/proc/self/fd/{fd}") for name, fd in held.items()}}
log = pathlib.Path(sys.argv[1])
with log.open("a") as file:
    print(json.dumps(said), file=file)
"""
#: ... and serves until it is killed, or ends at once.
DAEMON = f"""{SAYS}
if len(sys.argv) == 2:
    signal.pause()
"""


class Kept:
    """A pod directory, a keeper, and this test as its first daemon."""

    def __init__(
        self, run: Path, *options: str, daemon: tuple[str, ...] = (), dead: bool = False, launcher: Path = LAUNCHER
    ) -> None:
        self.pod = run / "pods/00112233445566778899"
        self.log = run / "log"
        self.pod.mkdir(parents=True, mode=0o700)
        (self.pod / "ledger").touch(0o600)
        self.first = subprocess.Popen(["sleep", "86400"])
        self.ledger = Ledger(self.pod)
        self._plan("daemon", self.first.pid)
        if dead:
            self.die()
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.pod / "shim.sock"))
        self.listener.listen()
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.settimeout(SOON)
        words = [launcher, "keep", str(theirs.fileno()), "--pod-dir", self.pod, *options, "--"]
        argv = [*words, sys.executable, "-c", DAEMON, self.log, *daemon]
        self.keeper = subprocess.Popen(argv, pass_fds=[theirs.fileno()], cwd=Path(__file__).parents[2])
        theirs.close()
        self._plan("keeper", self.keeper.pid)

    def _plan(self, what: str, pid: int) -> None:
        found = find(pid)
        assert found is not None
        n = self.ledger.plan(Kind.PROCESS, what=what)
        self.ledger.made(n, pid=pid, start=found.start)

    def store(self, name: str, fd: int) -> None:
        socket.send_fds(self.control, [f"FDSTORE=1\nFDNAME={name}".encode()], [fd])

    def say(self, text: str) -> None:
        self.control.send(text.encode())

    def daemons(self) -> list[dict]:
        """Those that were told to serve, in order."""
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def die(self) -> None:
        """The first daemon's SIGKILL."""
        self.first.kill()
        self.first.wait()

    def recorded(self) -> int:
        self.ledger.refresh()
        return next(r.fields["pid"] for r in self.ledger.state.live.values() if r.fields["what"] == "daemon")

    def close(self) -> None:
        self.keeper.kill()
        self.keeper.wait()
        self.die()
        self.control.close()
        self.listener.close()
        self.ledger.close()
        for daemon in self.daemons():
            if (found := find(daemon["pid"])) is not None and "kata_shimd" in found.command():
                found.kill()


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    made = Kept(tmp_path)
    yield made
    made.close()


def test_the_next_daemon_gets_everything_and_is_on_record(kept: Kept, tmp_path: Path) -> None:
    kept.store("listen", kept.listener.fileno())
    (tmp_path / "x").touch()
    with (tmp_path / "x").open() as file:
        kept.store("something", file.fileno())
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(kept.pod / "shim.sock"))
    words = fds.take(kept.control)
    assert words is not None and sorted(words.fds) == ["c1", "j1"]
    kept.die()
    (daemon,) = eventually("another daemon", kept.daemons, within=SOON)
    assert daemon["held"] == ["c1", "j1", "listen", "something"]
    assert daemon["files"]["something"] == str(tmp_path / "x")
    assert kept.recorded() == daemon["pid"]
    client.close()


@pytest.mark.parametrize("options", [(), ("--spare",)], ids=["cold", "spare"])
def test_a_later_daemon_goes_first_until_it_serves(tmp_path: Path, options: tuple[str, ...]) -> None:
    kept = Kept(tmp_path, *options)
    os.setpriority(os.PRIO_PROCESS, kept.keeper.pid, 3)
    try:
        kept.store("listen", kept.listener.fileno())
        kept.say("READY=1")
        kept.die()
        (daemon,) = eventually("another daemon", kept.daemons, within=SOON)
        assert daemon["nice"] == ["3", -7]
    finally:
        kept.close()


def test_what_a_daemon_said_last_is_heard(kept: Kept, tmp_path: Path) -> None:
    """Said and dead before the keeper looks: it is stopped meanwhile."""
    kept.keeper.send_signal(signal.SIGSTOP)
    kept.store("listen", kept.listener.fileno())
    kept.store("gone", kept.listener.fileno())
    kept.say("FDSTOREREMOVE=1\nFDNAME=gone")
    kept.die()
    kept.keeper.send_signal(signal.SIGCONT)
    (daemon,) = eventually("another daemon", kept.daemons, within=SOON)
    assert daemon["held"] == ["listen"]


def test_connections_made_while_no_daemon_is_there_are_kept(kept: Kept) -> None:
    kept.store("listen", kept.listener.fileno())
    kept.keeper.send_signal(signal.SIGSTOP)
    kept.die()
    clients = [socket.socket(socket.AF_UNIX) for _ in range(5)]
    for client in clients:
        client.connect(str(kept.pod / "shim.sock"))
    kept.keeper.send_signal(signal.SIGCONT)
    (daemon,) = eventually("another daemon", kept.daemons, within=SOON)
    kept_later = [name for name in daemon["held"] if name.startswith("c")]
    assert len(kept_later) <= 5
    for client in clients:
        client.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.recv(1)
        client.close()


def test_a_spare_takes_over(tmp_path: Path) -> None:
    kept = Kept(tmp_path, "--spare")
    try:
        kept.say("READY=1")
        children = Path(f"/proc/{kept.keeper.pid}/task/{kept.keeper.pid}/children")
        spare = int(eventually("a spare", children.read_text, within=SOON))
        kept.die()
        (daemon,) = eventually("another daemon", kept.daemons, within=SOON)
        assert daemon["pid"] == spare == kept.recorded()
    finally:
        kept.close()


def test_a_spare_ends_with_its_keeper(tmp_path: Path) -> None:
    kept = Kept(tmp_path, "--spare")
    try:
        kept.say("READY=1")
        children = Path(f"/proc/{kept.keeper.pid}/task/{kept.keeper.pid}/children")
        spare = find(int(eventually("a spare", children.read_text, within=SOON)))
        assert spare is not None
        kept.keeper.kill()
        eventually("the spare's end", lambda: not spare.alive(), within=SOON)
    finally:
        kept.close()


def test_a_daemon_that_died_before_its_keeper_looked_is_dead(tmp_path: Path) -> None:
    kept = Kept(tmp_path, dead=True)
    try:
        eventually("the next daemon", kept.daemons, within=SOON)
    finally:
        kept.close()


def test_a_pod_that_stops_is_undone_when_its_daemon_dies(kept: Kept) -> None:
    kept.ledger.phase(Phase.STOPPING)
    kept.die()
    assert kept.keeper.wait(SOON) == 0
    assert not kept.pod.exists()
    assert kept.daemons() == []


def test_a_pod_is_undone_by_a_launcher_that_was_written_over(tmp_path: Path) -> None:
    """As an installation in the same place does it: the file that runs is no longer at its path."""
    launcher = Path(shutil.copy2(LAUNCHER, tmp_path))
    kept = Kept(tmp_path, launcher=launcher)
    try:
        kept.store("listen", kept.listener.fileno())
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(kept.pod / "shim.sock"))
            kept.control.recv(4096)  # it runs
        launcher.unlink()
        kept.ledger.phase(Phase.STOPPING)
        kept.die()
        assert kept.keeper.wait(SOON) == 0
        assert not kept.pod.exists()
    finally:
        kept.close()


def test_daemons_that_die_at_once_are_given_up(tmp_path: Path) -> None:
    kept = Kept(tmp_path, "--deaths", "3", "--within", "600", daemon=("die",))
    try:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(SOON)
        client.connect(str(kept.pod / "shim.sock"))
        kept.store("listen", kept.listener.fileno())
        kept.listener.close()  # as a daemon's copy goes with it
        kept.die()
        assert kept.keeper.wait(SOON) == 0
        assert len(kept.daemons()) == 3
        assert not kept.pod.exists()
        kept.control.close()  # with the copy of the client's connection that was meant for a daemon
        assert client.recv(1) == b"", "those who wait are told"
        client.close()
    finally:
        kept.close()


def test_strangers_are_not_let_in(kept: Kept) -> None:
    """Even where the socket's mode would let them."""
    kept.store("listen", kept.listener.fileno())
    with socket.socket(socket.AF_UNIX) as friend:
        friend.connect(str(kept.pod / "shim.sock"))
        kept.control.recv(4096)  # handed on: from here on the keeper looks at the directory no more
    for directory in (kept.pod, *kept.pod.parents):
        if str(directory).startswith("/tmp/"):
            directory.chmod(0o755)
    (kept.pod / "shim.sock").chmod(0o666)
    script = (
        "import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.settimeout(10); print(s.recv(1))"
    )
    argv = [sys.executable, "-c", script, str(kept.pod / "shim.sock")]
    done = subprocess.run(argv, user=65534, capture_output=True, text=True, check=False, cwd="/", env={})
    assert done.stdout == "b''\n" or "ConnectionReset" in done.stderr, done
    kept.pod.chmod(0o700)
