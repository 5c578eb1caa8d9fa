"""Templates on disk: what was written is found, everything else is refused, and nobody else is in the way."""

import json
import os
import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kata_shimd.errors import HostFailed
from kata_shimd.vm.template import memory, store
from kata_shimd.vm.template.store import HEADER, MEMORY, STATE, Refused, Store

KEY = "0123456789abcdef0123"
SIZE = 64 * memory.PAGE


@pytest.fixture
def ram():
    fd = memory.new(SIZE)
    os.pwrite(fd, b"used", 5 * memory.PAGE)
    yield fd
    os.close(fd)


@pytest.fixture
def templates(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_filesystem", lambda _path: "tmpfs")
    made = Store(tmp_path / "templates")
    made.begin()
    return made


@pytest.fixture
def made(templates, ram):
    assert templates.publish(KEY, {"argv": ["qemu"]}, b"state" * 100, ram) == memory.PAGE
    return templates


def found(templates, key=KEY):
    template = templates.find(key)
    if template is None:
        return None
    data = os.pread(template.memory, SIZE, 0)
    os.close(template.memory)
    return template, data


def test_what_was_published_is_found(made, ram):
    template, data = found(made)
    assert (template.state, template.size, data) == (b"state" * 100, SIZE, os.pread(ram, SIZE, 0))


def test_nobody_else_can_come_near(made):
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (made.path, made.path / KEY, *(made.path / KEY).iterdir())]
    assert all(mode & 0o077 == 0 for mode in modes)


def test_none_is_none(templates):
    assert found(templates) is None
    assert templates.list() == []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_a_changed_byte_of_header_or_state_is_refused(made, data):
    path = made.path / KEY / data.draw(st.sampled_from([HEADER, STATE]))
    whole = path.read_bytes()
    changed = bytearray(whole)
    changed[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(changed)
    with pytest.raises(Refused):
        made.find(KEY)
    path.write_bytes(whole)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_a_file_of_another_size_is_refused(made, data):
    path = made.path / KEY / data.draw(st.sampled_from([HEADER, STATE, MEMORY]))
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(Refused):
        made.find(KEY)
    path.write_bytes(whole)


def test_memory_that_has_lost_what_was_in_it_is_refused(made):
    os.truncate(made.path / KEY / MEMORY, 0)
    os.truncate(made.path / KEY / MEMORY, SIZE)
    with pytest.raises(Refused, match="not as large"):
        made.find(KEY)


def test_of_another_key_it_is_refused(made):
    (made.path / KEY).rename(made.path / "other")
    with pytest.raises(Refused, match="another's"):
        made.find("other")


def test_of_another_format_it_is_refused(made):
    said = json.loads((made.path / KEY / HEADER).read_bytes().partition(b"\n")[2])
    del said["crc32"]
    (made.path / KEY / HEADER).write_bytes(store._encode(said))
    with pytest.raises(Refused, match="another format"):
        made.find(KEY)
    assert [each.problem for each in made.list()] == ["it is of another format"]


@pytest.mark.parametrize("file", ["", HEADER, STATE, MEMORY])
def test_what_others_may_touch_is_refused(made, file):
    (made.path / KEY / file).chmod(0o755)
    with pytest.raises(Refused, match="not ours alone"):
        made.find(KEY)


@pytest.mark.parametrize("file", [HEADER, STATE, MEMORY])
def test_a_link_is_refused(made, file):
    path = made.path / KEY / file
    path.rename(made.path / "elsewhere.x")
    path.symlink_to(made.path / "elsewhere.x")
    with pytest.raises(Refused):
        made.find(KEY)


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir])
def test_what_is_no_file_is_refused_at_once(made, make):
    (made.path / KEY / STATE).unlink()
    make(made.path / KEY / STATE)
    with pytest.raises(Refused):
        made.find(KEY)


def test_publishing_again_takes_the_place_and_leaves_nothing(made, ram):
    made.publish(KEY, {}, b"newer", ram)
    template, _ = found(made)
    assert template.state == b"newer"
    assert [path.name for path in made.path.iterdir()] == [KEY]


def test_publishing_that_fails_leaves_nothing(templates, ram, monkeypatch):
    def full(_path, _data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "_write", full)
    with pytest.raises(HostFailed, match=r"write template: .*: No space left"):
        templates.publish(KEY, {}, b"state", ram)
    assert list(templates.path.iterdir()) == []


def test_removing_does_not_disturb_who_has_it_open(made):
    template = made.find(KEY)
    assert made.remove(KEY) and not made.remove(KEY)
    assert os.pread(template.memory, 4, 5 * memory.PAGE) == b"used"
    os.close(template.memory)


@pytest.mark.parametrize("put", [lambda path: path.symlink_to("/etc"), lambda path: path.write_text("x")])
def test_removing_what_is_no_directory(templates, put):
    put(templates.path / KEY)
    with pytest.raises(Refused):
        templates.find(KEY)
    assert templates.remove(KEY)
    assert Path("/etc/passwd").exists() and list(templates.path.iterdir()) == []


def test_one_makes_it_at_a_time(templates):
    with templates.making(KEY) as first, templates.making(KEY) as second:
        assert (first, second) == (True, False)
    with templates.making(KEY) as third:
        assert third


def test_sweeping_takes_away_what_nobody_is_at(templates):
    for key in (KEY, "busy"):
        (templates.path / f"{key}.new-1234").mkdir()
    with templates.making("busy") as ours:
        assert ours
        templates.sweep()
        assert [path.name for path in templates.path.glob("*.new-*")] == ["busy.new-1234"]
        templates.sweep("busy")
        assert list(templates.path.glob("*.new-*")) == []


def test_a_failure_is_remembered_for_a_while(templates, monkeypatch):
    assert not templates.resting(KEY)
    templates.failed(KEY)
    assert templates.resting(KEY)
    now = store.time.time()
    monkeypatch.setattr(store.time, "time", lambda: now + store.BACK_OFF + 1)
    assert not templates.resting(KEY)
    monkeypatch.undo()
    templates.forgive(KEY)
    assert not templates.resting(KEY)


def test_a_list_says_what_is_wrong(made):
    assert [(each.key, each.problem, each.size, each.used) for each in made.list()] == [(KEY, "", SIZE, memory.PAGE)]
    (made.path / KEY / STATE).write_bytes(b"other")
    assert [each.problem for each in made.list()] == ["its device state is not what was written"]


def test_what_is_somebody_elses_is_no_template(made):
    """Kata's own lies at the same place, and those that are bad are removed."""
    (made.path / "memory").write_bytes(b"")
    (made.path / "state").write_bytes(b"")
    assert [each.key for each in made.list()] == [KEY]


def test_a_place_that_others_may_write_to_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_filesystem", lambda _path: "tmpfs")
    (tmp_path / "open").mkdir(mode=0o777)
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(HostFailed, match="not ours alone"):
        Store(tmp_path / "open").begin()


def test_a_place_that_is_not_in_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_filesystem", lambda _path: "ext4")
    with pytest.raises(HostFailed, match="it is on ext4; mount a tmpfs there"):
        Store(tmp_path / "disk").begin()
    assert not (tmp_path / "disk").exists()


def test_a_place_can_be_judged_before_it_is_made(templates, tmp_path):
    there = Store(tmp_path / "not" / "yet")
    there.check_place()
    free, size = there.room()
    assert 0 < free <= size and not there.path.parent.exists()


def test_the_file_system_of_a_place_is_that_of_the_deepest_mount():
    assert store._filesystem(Path("/proc/self")) == "proc"
    assert store._filesystem(Path("/dev/shm")) == "tmpfs"


def test_who_is_at_work_is_seen(templates):
    assert not templates.is_at_work(KEY)
    with templates.making(KEY):
        assert templates.is_at_work(KEY)
    assert not templates.is_at_work(KEY)


def test_that_it_was_missed_is_remembered(templates):
    assert [templates.missed(KEY), templates.missed(KEY), templates.missed("other")] == [False, True, False]


def test_why_it_failed_is_remembered(templates):
    assert templates.why_failed(KEY) == ""
    templates.failed(KEY, "full")
    assert templates.why_failed(KEY) == "full"
