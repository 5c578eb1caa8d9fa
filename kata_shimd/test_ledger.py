"""The ledger: what is written, and what a reader makes of it, torn or not."""

import json
import os
import subprocess
import sys

import pytest

from kata_shimd.errors import HostFailed
from kata_shimd.ledger import Kind, Ledger, Phase, container_scope, read

OPEN = b'{"op":"open","v":1,"pod":"h","namespace":"ns","id":"p","address":"/a"}\n'


@pytest.fixture
def pod_dir(tmp_path):
    (tmp_path / "ledger").write_bytes(OPEN)
    return tmp_path


def test_plan_is_on_disk_before_it_returns(pod_dir):
    ledger = Ledger(pod_dir)
    n = ledger.plan(Kind.MOUNT, scope=container_scope("c1"), path="/x")
    last = json.loads((pod_dir / "ledger").read_bytes().splitlines()[-1])
    assert last == {"op": "plan", "n": n, "scope": "container/c1", "kind": "mount", "needs": [], "path": "/x"}


def test_a_record_that_cannot_be_written_is_a_failure_and_the_next_one_can(pod_dir):
    told: list[str] = []
    ledger = Ledger(pod_dir, fail_at=2, fault=told.append)
    first = ledger.plan(Kind.FILE, path="/a")
    with pytest.raises(HostFailed, match="No space left"):
        ledger.plan(Kind.FILE, path="/b")
    assert told == ["plan 2 file"]
    assert list(read(pod_dir).live) == [first] == list(ledger.state.live)
    assert ledger.plan(Kind.FILE, path="/c") in read(pod_dir).live


def test_made_adds_identity_and_undone_removes(pod_dir):
    ledger = Ledger(pod_dir)
    n = ledger.plan(Kind.PROCESS, what="qemu")
    ledger.made(n, pid=7, start=9)
    assert read(pod_dir).live[n].fields == {"what": "qemu", "pid": 7, "start": 9}
    ledger.undone(n)
    assert read(pod_dir).live == {}


@pytest.mark.parametrize(
    "strange",
    [
        '{"op":"plan","kind":"dir"}',
        '{"op":"plan","n":"1","kind":"dir"}',
        '{"op":"plan","n":2,"kind":"dir","needs":7}',
        '{"op":"made","n":[]}',
        '{"op":"undone"}',
        '{"op":"phase","phase":"dancing"}',
        '{"op":"set"}',
        '{"op":[]}',
        "[" * 100_000,
    ],
)
def test_a_strange_line_is_passed_over_as_undo_passes_it_over(pod_dir, strange):
    planned = {"op": "plan", "n": 1, "kind": "dir", "path": "/x"}
    (pod_dir / "ledger").write_text(OPEN.decode() + strange + "\n" + json.dumps(planned) + "\n")
    state = read(pod_dir)
    assert (list(state.live), state.last, state.phase) == ([1], 1, None)


def test_numbers_go_on_where_another_writer_left(pod_dir):
    first = Ledger(pod_dir).plan(Kind.DIR, path="/a")
    assert Ledger(pod_dir).plan(Kind.DIR, path="/b") == first + 1


def test_phase_and_values_last_one_wins(pod_dir):
    ledger = Ledger(pod_dir)
    ledger.phase(Phase.STARTING)
    ledger.phase(Phase.STOPPING)
    ledger.set("secret", "a")
    ledger.set("secret", "b")
    state = read(pod_dir)
    assert state.phase is Phase.STOPPING
    assert state.values == {"secret": "b"}


def test_a_line_cut_anywhere_is_ignored_and_the_next_writer_is_not_harmed(pod_dir):
    whole = json.dumps({"op": "plan", "n": 1, "kind": "dir", "path": "/x"}).encode() + b"\n"
    for cut in range(1, len(whole)):
        (pod_dir / "ledger").write_bytes(OPEN + whole[:cut])
        assert read(pod_dir).live == {}
        n = Ledger(pod_dir).plan(Kind.DIR, path="/y")
        assert [record.fields["path"] for record in read(pod_dir).live.values()] in (["/y"], ["/x", "/y"]), cut
        assert n in read(pod_dir).live


def test_unknown_operations_are_passed_over(pod_dir):
    with (pod_dir / "ledger").open("ab") as file:
        file.write(b'{"op":"from-the-future"}\n')
    assert read(pod_dir).opened["id"] == "p"


def test_a_record_too_long_is_refused(pod_dir):
    with pytest.raises(HostFailed, match="over 4096"):
        Ledger(pod_dir).plan(Kind.DIR, path="x" * 5000)


def test_missing_ledger_says_so(tmp_path):
    with pytest.raises(HostFailed, match="read ledger"):
        Ledger(tmp_path)


def test_full_disk_fails_the_plan(pod_dir):
    ledger = Ledger(pod_dir)
    os.dup2(os.open("/dev/full", os.O_WRONLY), ledger._fd)
    with pytest.raises(HostFailed, match="No space left"):
        ledger.plan(Kind.DIR, path="/x")


def test_kill_point_dies_right_after_its_line(pod_dir):
    code = (
        "import sys; from pathlib import Path; from kata_shimd.ledger import *\n"
        "ledger = Ledger(Path(sys.argv[1]), die_at=2, fault=lambda step: print(step, flush=True))\n"
        "for i in range(5): ledger.plan(Kind.DIR, path=str(i))"
    )
    done = subprocess.run([sys.executable, "-c", code, pod_dir], check=False, capture_output=True)
    assert (done.returncode, done.stdout) == (-9, b"plan 2 dir\n")
    assert len(read(pod_dir).live) == 2
