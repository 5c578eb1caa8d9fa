"""Log lines: one record is one line, with its context, and nobody is ever waited for."""

import logging
import os

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


@pytest.mark.parametrize(("text", "quoted"), [("plain-1.2/3", "plain-1.2/3"), ("", '""'), ('a"b\\', r'"a\"b\\"')])
def test_quote(text, quoted):
    assert log.quote(text) == quoted
