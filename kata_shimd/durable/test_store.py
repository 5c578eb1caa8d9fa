"""The record of state: a line is there or not, and compaction is one rename."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kata_shimd.durable import store as module
from kata_shimd.durable.store import Store
from kata_shimd.durable.test_tape import Bomb, Killed, never
from kata_shimd.errors import HostFailed


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
    assert values(path) == {"version": 1, "a": {"x": 1}, "b/1": "y"}, "a change that was not flushed never was"


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.none() | st.integers() | st.text()), max_size=20), st.data())
def test_cut_anywhere_it_is_what_some_flush_left(tmp_path_factory, changes, data):
    path = tmp_path_factory.mktemp("s") / "state"
    store, states, live = Store(path), [{"version": 1}], {}
    for key, value in changes:
        store.put(key, value)
        store.flush()
        live = {k: v for k, v in {**live, key: value}.items() if v is not None}
        states.append({"version": 1, **live})
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


def test_another_version_is_refused(tmp_path):
    (tmp_path / "state").write_bytes(b'{"version":2}\n')
    with pytest.raises(HostFailed, match="version 2 is not 1"):
        Store(tmp_path / "state")
