"""The record of state: a line is there or not, and compaction is one rename."""

import asyncio
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kata_shimd import __version__
from kata_shimd.durable import store as module
from kata_shimd.durable.store import Store
from kata_shimd.durable.test_tape import Bomb, Killed, never
from kata_shimd.errors import HostFailed
from kata_shimd.pod import testing
from kata_shimd.pod.conftest import BUDGETS
from kata_shimd.pod.lifecycle import State
from kata_shimd.pod.pod import Pod
from kata_shimd.pod.ports import South

NEW = {"version": 2, "writer": __version__}
#: What the daemon of the commit before format 2 wrote.
RECORDED = Path(__file__).with_name("testdata") / "state-1"


def values(path):
    opened = Store(path, point=never)
    try:
        return dict(opened.under(""))
    finally:
        opened.close()


def test_what_is_flushed_is_there_for_the_next(tmp_path):
    path = tmp_path / "state"
    store = Store(path)
    store.put("a", {"x": 1})
    store.put("b/1", "y")
    store.flush()
    store.put("b/1", None)
    assert (store.get("a"), store.get("b/1")) == ({"x": 1}, None)
    store.close()
    assert values(path) == {**NEW, "a": {"x": 1}, "b/1": "y"}, "a change that was not flushed never was"


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.none() | st.integers() | st.text()), max_size=20), st.data())
def test_cut_anywhere_it_is_what_some_flush_left(tmp_path_factory, changes, data):
    path = tmp_path_factory.mktemp("s") / "state"
    store, states, live = Store(path), [NEW], {}
    for key, value in changes:
        store.put(key, value)
        store.flush()
        live = {k: v for k, v in {**live, key: value}.items() if v is not None}
        states.append({**NEW, **live})
    store.close()
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    at = data.draw(st.integers(first, len(whole)))
    path.write_bytes(whole[:at])
    flushed = whole[:at].count(b"\n") - 1
    # One line a flush; a removal of nothing is a line too.
    assert values(path) == states[flushed]


def test_a_torn_line_does_not_swallow_the_next(tmp_path):
    path = tmp_path / "state"
    path.write_bytes(b'{"version":1}\n{"a":1')
    store = Store(path)
    store.put("b", 2)
    store.flush()
    store.close()
    assert values(path) == {"version": 1, "b": 2}


def test_history_is_dropped_and_a_kill_on_the_way_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_SLACK", 200)
    for k in range(1, 100):
        path = tmp_path / f"state{k}"
        store, last = Store(path, point=Bomb(k)) if k > 1 else Store(path, point=never), 0
        try:
            for number in range(40):
                store.put("n", number)
                last = number
                store.flush()
        except Killed:
            assert values(path)["n"] == last
        assert path.stat().st_size < 2000
        os.close(store._fd)


@pytest.mark.parametrize("found", ["3", '"2"', "true", "null", "0"])
def test_another_format_is_refused_with_who_wrote_it(tmp_path, found):
    (tmp_path / "state").write_text(f'{{"version":{found},"writer":"9.8.7","a":1}}\n')
    with pytest.raises(
        HostFailed, match=r"read state: .*: format .*, written by 9\.8\.7; this is .*, which reads none beyond 2; "
    ):
        Store(tmp_path / "state")


def test_a_record_of_the_format_before_is_kept_in_it_until_it_is_rewritten(tmp_path):
    """As the last version that wrote format 1 left it, over a container and an exec."""
    path = tmp_path / "state"
    path.write_bytes(RECORDED.read_bytes())
    store = Store(path)
    store.put("booted", True)
    store.flush()
    store.close()
    before = values(path)
    assert before["version"] == 1
    assert before["container/pod"]["execs"]["more"]["state"] == "RUNNING"
    assert rewritten(path, 2) == {**before, **NEW}
    assert rewritten(path, 1) == before, "and back, for a daemon that knows no other"


def rewritten(path, version):
    store = Store(path)
    store.rewrite(version)
    store.close()
    return values(path)


def test_a_kill_while_it_is_rewritten_loses_nothing(tmp_path):
    for k in range(1, 5):
        path = tmp_path / f"state{k}"
        path.write_bytes(RECORDED.read_bytes())
        before = values(path)
        store = Store(path, point=Bomb(k))
        try:
            store.rewrite(2)
        except Killed:
            pass
        os.close(store._fd)
        assert values(path) in (before, {**before, **NEW})
    assert values(path) == {**before, **NEW}, "the last had nothing left to be killed at"


class Over(Exception):
    """Ends the pod's tasks."""


async def test_a_pod_goes_on_from_a_record_of_the_format_before(tmp_path):
    (tmp_path / "state").write_bytes(RECORDED.read_bytes())
    store = Store(tmp_path / "state")
    south = South(testing.Starter(), testing.Files(), testing.Streams(), testing.Events())
    try:
        async with asyncio.TaskGroup() as group:
            pod = Pod(south, group, BUDGETS, note=lambda *_, **__: None)
            pod.restore(dict(store.under("container/")), testing.Guest())
            container = pod.container("pod")
            assert container.snapshot("").state is container.snapshot("more").state is State.RUNNING
            assert container.snapshot("more").stdio.stdin == "/run/recorded/more-stdin"
            raise Over
    except* Over:
        store.close()
