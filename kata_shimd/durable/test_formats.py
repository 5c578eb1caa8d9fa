"""What another installation says that it can read, and what follows for a pod."""

from dataclasses import replace

import pytest

from kata_shimd.durable import formats
from kata_shimd.durable.formats import OURS
from kata_shimd.errors import FailedPrecondition


def test_what_is_said_is_heard():
    assert formats.heard(formats.said(), "/new/python3") == OURS


@pytest.mark.parametrize(
    "line", ["", "Traceback", "[]", "{}", '{"version":"1","state":3,"connection":1,"stream":1}', "[" * 100_000]
)
def test_nonsense_is_no_answer(line):
    with pytest.raises(
        FailedPrecondition, match=r"upgrade: /new/python3: it answers .* when it is asked what it can read"
    ):
        formats.heard(line, "/new/python3")


def test_a_record_that_can_be_read_stays_as_it_is():
    assert formats.common(OURS, 1) == 1
    assert formats.common(replace(OURS, state=(2, 3)), 2) == 2


def test_a_record_is_written_anew_for_a_version_that_reads_only_the_one_before():
    assert formats.common(replace(OURS, state=(1,)), 2) == 1
    assert formats.common(replace(OURS, state=(2, 3)), 1) == 2


def test_a_version_that_is_too_far_away_is_refused():
    with pytest.raises(
        FailedPrecondition, match=r"reads states of format 0, this pod.s is 2; move by one version at a time"
    ):
        formats.common(replace(OURS, version="0.0.1", state=(0,)), 2)


@pytest.mark.parametrize(("what", "name"), [("connection", "connections"), ("stream", "streams")])
def test_memory_files_of_another_format_are_refused(what, name):
    with pytest.raises(FailedPrecondition, match=f"9: it keeps {name} in format 2, this pod.s are in 1"):
        formats.common(replace(OURS, version="9", **{what: 2}), 2)
