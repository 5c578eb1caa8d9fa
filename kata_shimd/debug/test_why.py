"""The two forms of an answer: for people and for programs."""

import json

from kata_shimd.debug import pods, why
from kata_shimd.debug.testing import BOOTED, POD, event, write_journal

HOSTILE = "\x1b[2Jfake"


def explained(tmp_path, *events):
    write_journal(tmp_path, events)
    return why.explain(pods.load(tmp_path, POD))


def test_text_begins_with_the_pod_and_ends_with_the_verdict(tmp_path):
    report = explained(tmp_path, *BOOTED, event("agent-lost", error=f"silent {HOSTILE}"), event("daemon-ended"))
    lines = why.as_text(report).splitlines()
    assert lines[0] == f"pod sandbox-1 in k8s.io ({POD}), ended"
    assert lines[1] == "began 2025-06-15T15:06:40.000000000Z"
    assert lines[-1] == "The agent in the guest was lost, so the VM was ended: silent \\x1b[2Jfake."
    assert all(line.isprintable() for line in lines)


def test_json_has_every_event_and_no_control_characters(tmp_path):
    text = why.as_json(explained(tmp_path, *BOOTED, event("agent-lost", error=HOSTILE), event("daemon-ended")))
    assert text.isascii() and "\x1b" not in text
    answer = json.loads(text)
    assert answer["schema_version"] == 1
    assert answer["pod"] == {
        "hash": POD,
        "sandbox_id": "sandbox-1",
        "namespace": "k8s.io",
        "phase": "ended",
        "containers": [],
    }
    assert (answer["verdict"]["rule"], answer["verdict"]["failed"]) == ("agent-lost", True)
    assert answer["events"][1] == {
        "time": "2025-06-15T15:06:40.100000000Z",
        "after_s": 0.1,
        "event": "accelerator",
        "fields": {"choice": "tcg", "why": "/dev/kvm: No such file or directory"},
    }
    assert answer["events"][-2]["fields"]["error"] == HOSTILE


def test_a_container_is_answered_for_by_its_name_or_its_beginning(tmp_path):
    made = (event("created", container=name, pid=7) for name in ("sandbox-1", "c1-abc"))
    left = event("exited", container="c1-abc", exec="", status=3)
    write_journal(tmp_path, [*BOOTED, *made, left, event("agent-lost", error="silent"), event("daemon-ended")])
    pod = pods.load(tmp_path, POD)
    asked = {name: why.explain(pod, name) for name in ("sandbox-1", POD, "s", "c1-abc", "c1")}
    assert {name: report.verdict.rule for name, report in asked.items()} == {
        **dict.fromkeys(("sandbox-1", POD, "s"), "agent-lost"),
        **dict.fromkeys(("c1-abc", "c1"), "container-exited"),
    }
    assert json.loads(why.as_json(asked["c1"]))["container"] == "c1-abc"


def test_an_impossible_time_is_a_number():
    assert why.rfc3339(10**30) == str(10**30)
