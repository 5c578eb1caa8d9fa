"""The journal is bounded, survives what it reports on, and never fails its writer."""

import os

from kata_shimd import journal
from kata_shimd.journal import Journal, read


def test_events_come_back_in_order_with_their_time(tmp_path):
    writer = journal.Journal(tmp_path / "journal" / "h.jsonl")
    writer.write("boot", phase="qemu", ms=12)
    writer.write("rpc", rpc="Create")
    first, second = journal.read(writer.path)
    assert (first["event"], first["ms"], second["rpc"]) == ("boot", 12, "Create")
    assert first["t"] <= second["t"]
    assert writer.path.stat().st_mode & 0o777 == 0o600


def test_it_is_bounded_and_keeps_the_newest(tmp_path):
    writer = journal.Journal(tmp_path / "h.jsonl", max_bytes=4000)
    for number in range(1000):
        writer.write("tick", number=number)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 8000
    assert journal.read(writer.path)[-1]["number"] == 999


def test_what_was_begun_is_never_rotated_away_and_read_once(tmp_path):
    writer = journal.Journal(tmp_path / "h.jsonl", max_bytes=4000)
    writer.begin("daemon", id="pod")
    for number in range(1000):
        writer.write("tick", number=number)
    events = journal.read(writer.path)
    assert [event["id"] for event in events if event["event"] == "daemon"] == ["pod"]
    assert events[0]["event"] == "daemon"
    assert (tmp_path / "h.jsonl").stat().st_size <= 4000


def test_a_later_daemon_keeps_what_its_life_began_with(tmp_path):
    path = tmp_path / "j.jsonl"
    Journal(path).begin("daemon", pid=1)
    first = Journal(path, max_bytes=2000)
    first.begin("daemon", pid=2)
    first.write("x")
    for pid in (3, 4):
        later = Journal(path, max_bytes=2000)
        later.go_on("daemon", pid=pid)
        for number in range(200):
            later.write("x", number=number)
    told = [event["pid"] for event in read(path) if event["event"] == "daemon"]
    assert told == [2, 4], "the life's own beginning, and the daemon that writes"
    assert [event.get("later") for event in read(path) if event["event"] == "daemon"] == [None, True]


def test_a_later_daemon_whose_life_has_no_beginning_left(tmp_path):
    path = tmp_path / "j.jsonl"
    Journal(path).go_on("daemon", pid=3)
    assert [event["pid"] for event in read(path)] == [3]


def test_long_values_are_cut(tmp_path):
    writer = journal.Journal(tmp_path / "h.jsonl")
    writer.write("console", text="x" * 10000)
    assert len(journal.read(writer.path)[0]["text"]) < 2100


def test_a_full_disk_does_not_fail_the_writer(tmp_path):
    writer = journal.Journal(tmp_path / "h.jsonl")
    os.dup2(os.open("/dev/full", os.O_WRONLY), writer._fd)
    writer.write("lost")
    assert journal.read(writer.path) == []


def test_a_disk_that_has_room_again_is_told_how_much_is_missing(tmp_path):
    writer = journal.Journal(tmp_path / "h.jsonl")
    works = os.dup(writer._fd)
    os.dup2(os.open("/dev/full", os.O_WRONLY), writer._fd)
    writer.write("lost")
    writer.write("lost too")
    os.dup2(works, writer._fd)
    writer.write("heard")
    writer.write("and again")
    short, heard, again = journal.read(writer.path)
    assert (short["event"], short["lost"]) == ("journal-short", 2)
    assert (heard["event"], again["event"]) == ("heard", "and again")


def test_room_is_reserved_ahead_and_the_file_is_no_longer_for_it(tmp_path):
    """What has not been written must still be writable when the disk has become full; `integration/chaos` fills one."""
    writer = journal.Journal(tmp_path / "h.jsonl")
    for _ in range(40):
        writer.write("long", text="x" * journal.MAX_VALUE)
        found = writer.path.stat()
        assert found.st_blocks * 512 >= found.st_size + journal.RESERVE // 2 - 4096
    assert len(journal.read(writer.path)) == 40


def test_an_unwritable_place_does_not_fail_the_writer(tmp_path):
    (tmp_path / "file").touch()
    journal.Journal(tmp_path / "file" / "h.jsonl").write("lost")


def test_torn_lines_are_passed_over(tmp_path):
    path = tmp_path / "h.jsonl"
    path.write_text('{"event":"a"}\n{"event":\n{"event":"b"}\n')
    assert [event["event"] for event in journal.read(path)] == ["a", "b"]


def test_prune_keeps_the_newest_dead_and_all_living(tmp_path):
    for age, name in enumerate(["new", "old", "older", "alive"]):
        (tmp_path / f"{name}.jsonl").touch()
        os.utime(tmp_path / f"{name}.jsonl", (1000 - age, 1000 - age))
    journal.prune(tmp_path, {"alive"}, keep=1)
    assert sorted(file.stem for file in tmp_path.glob("*.jsonl")) == ["alive", "new"]
