"""Log lines: one record is one line, with its context, and nobody is ever waited for."""

import logging
import os
import socket

import pytest

from kata_shimd import log


@pytest.fixture
def root():
    logger = logging.getLogger()
    before, level = logger.handlers[:], logger.level
    yield logger
    for handler in logger.handlers:
        if handler not in before:
            handler.close()
    logger.handlers[:] = before
    logger.setLevel(level)
    logging.raiseExceptions = True


def test_lines_carry_context_and_stay_lines(tmp_path, root):
    os.mkfifo(tmp_path / "log")
    reader = os.open(tmp_path / "log", os.O_RDONLY | os.O_NONBLOCK)
    log.configure(tmp_path / "log", debug=True)
    token = log.container.set("c 1")
    logging.getLogger("x").info("two\nlines %s", "\x1b[31m")
    log.container.reset(token)
    line = os.read(reader, 4096).decode()
    os.close(reader)
    assert line.count("\n") == 1
    assert "level=info" in line and r'msg="two\nlines \x1b[31m"' in line and 'container="c 1"' in line


def test_a_full_fifo_drops_and_counts(tmp_path, root):
    os.mkfifo(tmp_path / "log")
    log.configure(tmp_path / "log", debug=False)
    for _ in range(3000):
        logging.getLogger("x").warning("%s", "y" * 100)
    assert root.handlers[0].dropped > 0


def test_without_a_fifo_it_is_stderr(tmp_path, root, capsys):
    log.configure(tmp_path / "none", debug=False)
    logging.getLogger("x").error("oops")
    assert "oops" in capsys.readouterr().err


@pytest.fixture
def journald(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "socket"))
        yield sock


def test_journald_gets_context_as_fields(tmp_path, root, journald):
    log.configure(tmp_path / "none", debug=False, journal=journald.getsockname())
    tokens = [(var, var.set(value)) for var, value in ((log.pod, "p"), (log.container, "c 1"), (log.rpc, "Create"))]
    logging.getLogger("x").warning("one %s", "line")
    logging.getLogger("x").error("two\nlines")
    for var, token in tokens:
        var.reset(token)
    said = journald.recv(4096)
    context = b"KATA_POD=p\nKATA_CONTAINER=c 1\nKATA_RPC=Create\n"
    assert said == b"MESSAGE=one line\nPRIORITY=4\nSYSLOG_IDENTIFIER=kata-shimd\nLOGGER=x\n" + context
    assert journald.recv(4096).startswith(b"MESSAGE\n\x09\0\0\0\0\0\0\0two\nlines\nPRIORITY=3\n")


def test_journald_that_does_not_read_holds_nobody_up(tmp_path, root, journald):
    log.configure(tmp_path / "none", debug=False, journal=journald.getsockname())
    for _ in range(3000):
        logging.getLogger("x").warning("%s", "y" * 1000)
    assert root.handlers[-1].dropped > 0


def test_without_journald_there_is_the_other(tmp_path, root):
    log.configure(tmp_path / "none", debug=False, journal=str(tmp_path / "nowhere"))
    assert len(root.handlers) == 1


@pytest.mark.parametrize(("text", "quoted"), [("plain-1.2/3", "plain-1.2/3"), ("", '""'), ('a"b\\', r'"a\"b\\"')])
def test_quote(text, quoted):
    assert log.quote(text) == quoted
