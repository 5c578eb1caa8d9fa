"""What is remembered of an answer is never another's."""

from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from kata_shimd import wire
from kata_shimd.api import task
from kata_shimd.pod.lifecycle import State
from kata_shimd.pod.values import Exit, Snapshot, Stdio
from kata_shimd.task import translate

word = st.sampled_from(["", "a", "b"])
snapshots = st.builds(
    Snapshot,
    container_id=word,
    exec_id=word,
    bundle=st.builds(Path, st.sampled_from(["/a", "/b"])),
    pid=st.integers(0, 2**32 - 1),
    state=st.sampled_from(State),
    stdio=st.builds(Stdio, word, word, word, st.booleans()),
    exit=st.none() | st.builds(Exit, st.integers(0, 255), st.integers(0, 2**62)),
)


@given(st.lists(snapshots, min_size=1, max_size=5))
def test_the_bytes_of_a_state_are_those_of_its_message(asked: list[Snapshot]) -> None:
    for snapshot in (*asked, *asked):
        assert translate.state_bytes(snapshot) == wire.encode(translate.state_response(snapshot))


def test_whatever_changes_is_told() -> None:
    before = Snapshot("c", "", Path("/b"), 7, State.RUNNING, Stdio("", "/o", "/e", False), None)
    changes = ({"pid": 8}, {"state": State.STOPPED}, {"exit": Exit(3, 5)}, {"exec_id": "e"}, {"bundle": Path("/c")})
    told = [translate.state_bytes(replace(before, **change)) for change in ({}, *changes)]
    assert len(set(told)) == len(told)
    assert wire.decode(task.StateResponse, told[3]).exit_status == 3
