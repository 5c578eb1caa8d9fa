"""Standard streams: whole, in order, with their ends where they belong."""

import hashlib
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Final

import pytest

from integration.harness import process
from integration.harness.ctr import PATIENCE, Ctr

MIB: Final = 1 << 20


def test_32_mib_of_stdin_arrive_byte_for_byte(ctr: Ctr, name: str, running: str) -> None:
    data = Random(1).randbytes(32 * MIB)
    done = ctr.exec(running, name, "sha256sum", input=data, within=4 * PATIENCE).ok()
    assert done.out.split()[0] == hashlib.sha256(data).hexdigest()


def test_32_mib_of_stdout_arrive_byte_for_byte(ctr: Ctr, name: str, running: str) -> None:
    """What leaves is what came in by another way: a file of random bytes, its sum taken inside."""
    ctr.exec(running, f"{name}-make", "sh", "-c", f"head -c {32 * MIB} /dev/urandom > /data").ok()
    inside = ctr.exec(running, f"{name}-sum", "sha256sum", "/data").ok().out.split()[0]
    done = ctr.exec(running, name, "cat", "/data", within=4 * PATIENCE).ok()
    assert len(done.stdout) == 32 * MIB
    assert hashlib.sha256(done.stdout).hexdigest() == inside


def test_through_and_back(ctr: Ctr, name: str) -> None:
    data = Random(2).randbytes(MIB)
    assert ctr.run(name, "cat", input=data, within=2 * PATIENCE).ok().stdout == data


def test_empty_stdin_ends_when_it_is_closed(ctr: Ctr, name: str, running: str) -> None:
    """Closed only once the process is up: earlier, ctr itself may forget to pass it on."""
    words = ("task", "exec", "--exec-id", name, running, "sh", "-c", "echo up; wc -c")
    client = ctr.spawn(*words, stdin=subprocess.PIPE)
    try:
        assert client.stdin is not None and client.stdout is not None
        assert client.stdout.readline() == b"up\n"
        client.stdin.close()
        assert client.stdout.read() == b"0\n"
        assert client.wait(PATIENCE) == 0
    finally:
        process.finish(client)


def test_stdin_closed_early_by_the_process(ctr: Ctr, name: str, running: str) -> None:
    """It takes one line and is gone; the rest of what the client writes stops nothing."""
    done = ctr.exec(running, name, "head", "-n", "1", input=b"first\n" + b"x" * (4 * MIB))
    assert (done.code, done.out) == (0, "first")


def test_stdin_never_given(ctr: Ctr, name: str, running: str) -> None:
    """The client holds its end open and writes nothing; a process that does not read ends as ever."""
    words = ("task", "exec", "--exec-id", name, running, "echo", "done")
    client = ctr.spawn(*words, stdin=subprocess.PIPE)
    try:
        assert client.stdout is not None
        assert client.stdout.read() == b"done\n"
        assert client.wait(PATIENCE) == 0
    finally:
        process.finish(client)


def test_no_stdio_at_all(ctr: Ctr, name: str) -> None:
    """Null io: reading gives end of file at once, writing is no error."""
    ctr.run(name, "sh", "-c", "cat && echo lost", options=["--null-io"]).ok()


@pytest.fixture
def sandbox(ctr: Ctr, name: str) -> Iterator[str]:
    """A pod in CRI's sense: its first container holds it open, others join by annotation."""
    notes = {"io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.sandbox-id": name}
    ctr.start(name, "sleep", "86400", annotations=notes)
    yield name
    ctr.remove(name)


def test_500_containers_lose_no_line(ctr: Ctr, sandbox: str) -> None:
    """Twenty at a time, in one pod, each printing one line just before it ends."""
    notes = {"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": sandbox}

    def one(number: int) -> tuple[int, str]:
        done = ctr.run(f"{sandbox}-{number}", "echo", f"line {number}", annotations=notes, within=4 * PATIENCE)
        return done.code, done.out

    with ThreadPoolExecutor(20) as pool:
        got = list(pool.map(one, range(500)))
    assert [(number, *g) for number, g in enumerate(got) if g != (0, f"line {number}")] == []
