"""Pods are found by any of their names, and a pid that another process got is not taken for theirs."""

import os
from pathlib import Path

import pytest

from kata_shimd.debug import pods
from kata_shimd.debug.pods import Phase
from kata_shimd.debug.testing import (
    BEGIN_NS,
    BOOTED,
    DAEMON,
    POD,
    SUCCESSOR,
    event,
    process_lines,
    write_journal,
    write_ledger,
)
from kata_shimd.errors import NotFound

OTHER = "fedcba98765432100000"
RUNNING = {"op": "phase", "phase": "running"}


def own_start():
    return int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])


def live_daemon(n=1):
    return process_lines(n, "daemon", os.getpid(), own_start())


def test_a_live_pod(tmp_path):
    scope = {"op": "plan", "n": 2, "scope": "container/c1", "kind": "dir", "path": "/x"}
    write_ledger(tmp_path, *live_daemon(), scope, RUNNING)
    pod = pods.load(tmp_path, POD)
    assert (pod.sandbox_id, pod.namespace, pod.phase, pod.containers) == ("sandbox-1", "k8s.io", Phase.RUNNING, ("c1",))
    assert pod.process("daemon") == pods.Process("daemon", os.getpid(), True)
    assert pod.process("qemu") is None
    assert pod.live and pod.began_ns is not None


@pytest.mark.parametrize(("pid", "start"), [(os.getpid(), 1), (2**22 + 1, 5)])
def test_a_daemon_that_is_gone(tmp_path, pid, start):
    write_ledger(tmp_path, *process_lines(1, "daemon", pid, start), RUNNING)
    assert pods.load(tmp_path, POD).phase is Phase.CRASHED


def test_a_pod_that_is_being_made(tmp_path):
    write_ledger(tmp_path)
    assert pods.load(tmp_path, POD).phase is Phase.STARTING


def test_a_dead_pod_is_known_by_its_journal(tmp_path):
    write_journal(tmp_path, [*BOOTED, event("created", container="c9", pid=1)])
    pod = pods.load(tmp_path, POD)
    assert (pod.sandbox_id, pod.phase, pod.containers, pod.live) == ("sandbox-1", Phase.ENDED, ("c9",), False)


def test_containers_of_an_earlier_life_are_not_this_pods(tmp_path):
    write_journal(tmp_path, [DAEMON, event("created", container="old", pid=1), DAEMON])
    assert pods.load(tmp_path, POD).containers == ()


def test_a_later_daemon_is_no_other_life(tmp_path):
    made = [event("created", container=name, pid=1) for name in ("c1", "c2")]
    write_journal(tmp_path, [DAEMON, event("created", container="old", pid=1), *BOOTED, *made, SUCCESSOR, SUCCESSOR])
    pod = pods.load(tmp_path, POD)
    assert (pod.containers, pod.sandbox_id) == (("c1", "c2"), "sandbox-1")
    assert pod.began_ns == BEGIN_NS + 2 * 10**8, "when its first daemon began"


def test_the_beginning_that_a_journal_repeats_is_no_other_life(tmp_path):
    """It stands at the head of each new file."""
    path = write_journal(tmp_path, [DAEMON, event("created", container="c1", pid=1)])
    path.rename(path.with_suffix(".jsonl.old"))
    write_journal(tmp_path, [DAEMON, event("created", container="c2", pid=1)])
    assert pods.load(tmp_path, POD).containers == ("c1", "c2")


def test_a_life_whose_beginning_is_lost(tmp_path):
    write_journal(tmp_path, [event("created", container="c1", pid=1), SUCCESSOR])
    pod = pods.load(tmp_path, POD)
    assert (pod.containers, pod.sandbox_id, pod.began_ns) == (("c1",), "sandbox-1", BEGIN_NS + 10**8)


def test_a_deleted_container_is_not_listed_and_still_leads_to_its_pod(tmp_path):
    write_ledger(tmp_path, *live_daemon(), RUNNING)
    made = [event("created", container=name, pid=1) for name in ("c1", "c2", "c3")]
    write_journal(
        tmp_path, [*BOOTED, *made, event("deleted", container="c1"), event("deleted", container="c2", exec="e")]
    )
    pod = pods.load(tmp_path, POD)
    assert (pod.containers, pod.deleted) == (("c2", "c3"), ("c1",))
    assert pods.find(tmp_path, "c1") == pod


@pytest.mark.parametrize("name", ["sandbox-1", "sand", "c1", POD, POD[:6]])
def test_found_by_any_name_or_its_beginning(tmp_path, name):
    write_journal(tmp_path, [DAEMON, event("created", container="c1", pid=1)])
    assert pods.find(tmp_path, name).name == POD


def test_a_whole_name_wins_over_a_beginning(tmp_path):
    write_ledger(tmp_path, sandbox_id="web")
    write_ledger(tmp_path, pod=OTHER, sandbox_id="web-2")
    assert pods.find(tmp_path, "web").name == POD


def test_two_that_fit_are_both_named(tmp_path):
    write_ledger(tmp_path, sandbox_id="web-1")
    write_ledger(tmp_path, pod=OTHER, sandbox_id="web-2")
    with pytest.raises(pods.Ambiguous) as caught:
        pods.find(tmp_path, "web")
    assert {pod.name for pod in caught.value.pods} == {POD, OTHER}


@pytest.mark.parametrize("name", ["other", ""])
def test_nothing_fits(tmp_path, name):
    write_ledger(tmp_path)
    with pytest.raises(NotFound):
        pods.find(tmp_path, name)


def test_no_run_directory_means_no_pods(tmp_path):
    assert pods.every(tmp_path / "none") == ()


def test_the_living_come_first_then_the_young(tmp_path):
    write_journal(tmp_path, [DAEMON], pod=OTHER)
    write_ledger(tmp_path, *live_daemon())
    assert [pod.name for pod in pods.every(tmp_path)] == [POD, OTHER]


def test_a_broken_journal_hides_nothing(tmp_path):
    path = write_journal(tmp_path, [DAEMON])
    path.write_bytes(b'\xff\xfe{"event":"daemon"\n[1]\n"event":"daemon"\n' + path.read_bytes())
    assert pods.find(tmp_path, "sandbox-1").name == POD
