"""Nothing a guest says reaches a terminal as a command."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata_shimd.debug.escape import block, harmless, one_line


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("plain ütf-8 €", "plain ütf-8 €"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("bell\a, C1 \x9b2J", "bell\\x07, C1 \\x9b2J"),
        ("bidi \u202eoverride", "bidi \\u202eoverride"),
        ("dos\r\nunix\n\ttab", "dos\nunix\n\ttab"),
        ("\ud800", "\\ud800"),
    ],
)
def test_what_is_not_printable_is_escaped(said, shown):
    assert harmless(said) == shown


def test_one_line_stays_one():
    assert one_line("a\nb\tc") == "a\\nb\\tc"
    assert one_line(17) == "17"


@given(st.text())
def test_one_line_is_always_printable(text):
    assert one_line(text).isprintable()


def test_a_block_shows_the_end_and_says_what_is_missing():
    text = "\n".join(f"line {number}" for number in range(10)) + "\n\n"
    assert list(block(text, lines=2, indent="| ")) == ["| … 8 lines above", "| line 8", "| line 9"]
