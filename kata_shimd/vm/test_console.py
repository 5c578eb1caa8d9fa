"""The console: hostile bytes, bounded memory and file, first and last words kept."""

import asyncio
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata_shimd.vm.console import RING, CappedFile, Console, Sanitizer


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"plain\tline\n", "plain\tline\n"),
        (b"\x1b[2J\x1b]0;title\x07", "\\x1b[2J\\x1b]0;title\\x07"),
        (b"over\rwritten\r\n", "overwritten\n"),
        (b"\x00\x08\x7f", "\\x00\\x08\\x7f"),
        ("grüße".encode(), "grüße"),
        (b"\xff\xfe", "\\xff\\xfe"),
        (b"\xc2\x9b31m", "\\x9b31m"),
        ("a\u202eb".encode(), "a\\u202eb"),
    ],
)
def test_what_the_guest_wrote_is_harmless(raw, shown):
    assert Sanitizer().feed(raw) == shown


@given(st.binary(), st.integers(0, 50))
def test_only_printable_text_comes_out_however_it_is_cut(data, cut):
    sanitizer = Sanitizer()
    text = sanitizer.feed(data[:cut]) + sanitizer.feed(data[cut:])
    assert all(char.isprintable() or char in "\n\t" for char in text)


def test_a_character_cut_in_two_is_put_together():
    sanitizer = Sanitizer()
    assert sanitizer.feed("ü".encode()[:1]) + sanitizer.feed("ü".encode()[1:]) == "ü"


def test_the_file_keeps_its_beginning_and_its_end(tmp_path):
    file = CappedFile(tmp_path / "log", limit=4000)
    for number in range(10_000):
        file.append(b"line %05d\n" % number)
        assert (tmp_path / "log").stat().st_size <= 4000
    text = (tmp_path / "log").read_text()
    assert text.startswith("line 00000\nline 00001\n")
    assert text.endswith("line 09999\n")
    assert "[... cut here ...]" in text


def test_one_piece_larger_than_the_file(tmp_path):
    file = CappedFile(tmp_path / "log", limit=1000)
    file.append(b"x" * 100_000)
    file.append(b"end")
    assert (tmp_path / "log").stat().st_size <= 1000
    assert (tmp_path / "log").read_bytes().endswith(b"end")


def test_a_later_daemon_appends(tmp_path):
    for text in (b"first\n", b"second\n"):
        file = CappedFile(tmp_path / "log", limit=1000)
        file.append(text)
        file.close()
    assert (tmp_path / "log").read_text() == "first\nsecond\n"
    assert stat.S_IMODE((tmp_path / "log").stat().st_mode) == 0o600


def test_the_limit_holds_for_pieces_of_any_size(tmp_path):
    """The mark of the cut counts too."""
    file, log = CappedFile(tmp_path / "log", limit=1000), tmp_path / "log"
    for size in (600, 600, 1, 499, 500, 501, 1000, 2000):
        file.append(b"x" * size)
        assert log.stat().st_size <= 1000
    file.close()


def test_a_link_in_the_way_is_not_followed(tmp_path):
    (tmp_path / "log").symlink_to(tmp_path / "victim")
    CappedFile(tmp_path / "log", limit=1000).append(b"text")
    assert not (tmp_path / "victim").exists()


def test_a_full_disk_is_no_failure():
    file = CappedFile(Path("/dev/full"), limit=1000)
    file.append(b"text")
    file.close()


@pytest.fixture
def console(tmp_path):
    """Make consoles; they are closed in the end."""
    made = []

    def make():
        made.append(Console(tmp_path / "console.log", limit=1 << 20))
        return made[-1]

    yield make
    for one in made:
        one._file.close()


def test_bytes_that_came_before_we_listened_are_read(console, pair, tmp_path, run):
    async def body():
        ours, guest = pair()
        guest.send(b"first byte\n")
        made = console()
        guest.close()
        made.attach(ours)
        async with asyncio.timeout(5):
            while made.attached:  # noqa: ASYNC110 - the loop's own reader ends it
                await asyncio.sleep(0)
        made.close()
        return made.tail()

    assert run(body()) == "first byte"
    assert (tmp_path / "console.log").read_text() == "first byte\n"


def test_memory_is_bounded_and_the_end_kept(console, pair, run):
    async def body():
        (ours, guest), made = pair(), console()
        made.attach(ours)
        for number in range(40):
            guest.send(b"%06d" % number * 1000)
            made.drain()
        made.close()
        return made.tail(1 << 30)

    text = run(body())
    assert len(text) == RING
    assert text.endswith("000039")


def test_last_words_in_the_sockets_buffer_are_kept(console, pair, run):
    async def body():
        (ours, guest), made = pair(), console()
        made.attach(ours)
        guest.send(b"Kernel panic\n")
        guest.close()
        made.close()
        return made.tail()

    assert run(body()) == "Kernel panic"


def test_it_can_be_attached_again(console, pair, run):
    async def body():
        (first, guest), (second, again), made = pair(), pair(), console()
        made.attach(first)
        guest.send(b"one ")
        made.drain()
        made.attach(second)
        again.send(b"two")
        made.close()
        return made.tail(), guest.recv(1)

    assert run(body()) == ("one two", b"")
