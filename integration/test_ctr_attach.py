"""``ctr task attach``, and the end of stdin: what a client gets that comes later, comes again, or comes after containerd."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from integration.harness import image, process
from integration.harness import shim as raw
from integration.harness.containerd import Containerd
from integration.harness.ctr import PATIENCE, Ctr
from integration.harness.shim import ShimSocket
from integration.harness.terminal import Terminal
from integration.harness.waiting import eventually

ANSWERS = 'while read line; do echo "got $line"; [ "$line" != end ] || exit 4; done; echo no-more'


@pytest.fixture
def waiting(ctr: Ctr, name: str) -> Iterator[str]:
    """A container that answers lines, begun by a client that is gone."""
    ctr(*ctr.run_words(name, "sh", "-c", ANSWERS, options=["--detach"])).ok()
    yield name
    ctr.remove(name)


@contextmanager
def attached(ctr: Ctr, container_id: str) -> Iterator["Client"]:
    client = Client(ctr.spawn("task", "attach", container_id, stdin=subprocess.PIPE))
    try:
        yield client
    finally:
        # It would hand a polite signal on to the container.
        client.child.kill()
        process.finish(client.child)


class Client:
    """A client with both of its ends in hand."""

    def __init__(self, child: "subprocess.Popen[bytes]") -> None:
        assert child.stdin is not None and child.stdout is not None
        self.child, self._input, self._output = child, child.stdin, child.stdout

    def ask(self, line: str) -> str:
        self._input.write(f"{line}\n".encode())
        self._input.flush()
        return self._output.readline().decode().strip()


def test_a_later_client_has_both_directions_and_the_exit_code(ctr: Ctr, waiting: str) -> None:
    with attached(ctr, waiting) as client:
        assert client.ask("one") == "got one"
        assert client.ask("end") == "got end"
        assert client.child.wait(PATIENCE) == 4


def test_one_client_after_another(ctr: Ctr, waiting: str) -> None:
    """The first is killed, which ends nothing: stdin has no end before CloseIO."""
    with attached(ctr, waiting) as first:
        assert first.ask("one") == "got one"
    with attached(ctr, waiting) as second:
        assert second.ask("two") == "got two"
    assert ctr.tasks()[waiting][1] == "RUNNING"


@pytest.fixture
def own(ctr: Ctr, tmp_path: Path) -> Iterator[Ctr]:
    """A client of a containerd that this test may kill: the session's would be missed."""
    with Containerd(ctr.containerd.host) as containerd:
        made = Ctr(containerd, ctr.namespace, ctr.runtime, image.NAME, ctr.config)
        image.write_image(archive := tmp_path / "image.tar")
        made("image", "import", archive).ok()
        yield made


def test_after_containerd_was_killed(own: Ctr, name: str) -> None:
    own(*own.run_words(name, "sh", "-c", ANSWERS, options=["--detach"])).ok()
    try:
        with attached(own, name) as client:
            assert client.ask("one") == "got one"
        own.containerd.kill()
        own.containerd.start()
        assert own.tasks()[name][1] == "RUNNING"
        with attached(own, name) as client:
            assert client.ask("two") == "got two"
            assert client.ask("end") == "got end"
            assert client.child.wait(PATIENCE) == 4
    finally:
        own.remove(name)


def test_a_terminal(ctr: Ctr, name: str) -> None:
    """It has the size of the window of whoever attaches."""
    shell = "while read line; do stty size; [ $line != end ] || exit 6; done"
    begin = ctr.argv(*ctr.run_words(name, "sh", "-c", shell, options=["--detach", "--tty"]))
    try:
        with Terminal(ctr.containerd.host, begin) as terminal:
            assert terminal.wait(within=PATIENCE) == 0
        words = ctr.argv("task", "attach", name)
        with Terminal(ctr.containerd.host, words, rows=31, cols=91) as terminal:
            terminal.resize(32, 92)
            eventually("the window's size", lambda: _size(terminal) in ("31 91", "32 92"), within=PATIENCE)
            terminal.send("end\n")
            assert terminal.wait(within=PATIENCE) == 6
    finally:
        ctr.remove(name)


def _size(terminal: Terminal) -> str:
    """What the container takes for the size now: a client tells it some time after it has attached, and until then it has none."""
    terminal.send("one\n")
    return terminal.expect(r"\d+ \d+|stty: standard input", within=PATIENCE)[0].decode()


# --- the end of stdin, on the shim's own socket ----------------------------------------------------------------------


class Fifos:
    """stdin and stdout of an exec, with our ends of them."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.stdin, self.stdout = directory / "in", directory / "out"
        for path in (self.stdin, self.stdout):
            os.mkfifo(path, 0o700)
        self._reader = os.open(self.stdout, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self.seen = b""

    def write(self, data: bytes) -> None:
        """As a client that comes, writes and goes."""
        with self.stdin.open("wb") as pipe:
            pipe.write(data)

    def has(self, data: bytes) -> bool:
        try:
            self.seen += os.read(self._reader, 1 << 20)
        except BlockingIOError:
            pass
        return data in self.seen

    def close(self) -> None:
        os.close(self._reader)


@pytest.fixture
def fifos(ctr: Ctr, name: str) -> Iterator[Fifos]:
    made = Fifos(ctr.containerd.host.root / f"io-{name}")
    yield made
    made.close()


@pytest.mark.vm
def test_stdin_ends_with_close_io_and_not_before(ctr: Ctr, name: str, running: str, fifos: Fifos) -> None:
    """Neither a client that goes nor CloseIO of something else ends it; what was written before the end all arrives."""
    shim = ShimSocket.of(ctr, running)
    words = raw.json_any(raw.PROCESS, raw.process("sh", "-c", "echo up; cat; echo the-end"))
    paths = {"stdin": str(fifos.stdin), "stdout": str(fifos.stdout)}
    shim.call("Exec", id=running, exec_id=name, spec=words, **paths)
    shim.call("Start", id=running, exec_id=name)
    for line in (b"one\n", b"two\n"):
        fifos.write(line)
        eventually(f"{line!r} of a client that has gone", lambda line=line: fifos.has(line), within=PATIENCE)  # type: ignore[misc]
    shim.call("CloseIO", id=running, exec_id=name, stdin=False)
    fifos.write(b"three\n" + b"x" * 60_000)
    shim.call("CloseIO", id=running, exec_id=name, stdin=True)
    assert shim.call("Wait", id=running, exec_id=name).exit_status == 0
    eventually("the end", lambda: fifos.has(b"the-end"), within=PATIENCE)
    assert fifos.seen == b"up\none\ntwo\nthree\n" + b"x" * 60_000 + b"the-end\n"
    shim.call("CloseIO", id=running, exec_id=name, stdin=True)
    shim.call("Delete", id=running, exec_id=name)
