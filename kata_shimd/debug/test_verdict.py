"""Every rule of the table, by a journal that only it should explain, and the order of those that could both."""

import pytest

from kata_shimd.debug.story import tell
from kata_shimd.debug.testing import BOOTED, DAEMON, SUCCESSOR, as_read, event
from kata_shimd.debug.verdict import RULES, judge, judge_container

PANIC = "[    1.2] Loading\n[    1.3] Kernel panic - not syncing: VFS: Unable to mount root fs\n[    1.4] CPU: 0 PID: 1"
ENDED = event("daemon-ended")
RAN = (*BOOTED, event("rpc", rpc="Create", call=1, ms=410.0), event("created", container="c1", pid=7))


def end(cause, status="0", **fields):
    """The two events of QEMU's end, the second one the pod's."""
    detail = {"cause": cause, "status": status, "stderr": "", "console": "", **fields}
    told = {**detail, "expected": fields.get("expected", False)}
    return event("qemu-ended", **{key: value for key, value in detail.items() if key != "expected"}), event(
        "vm-ended", **told
    )


#: Rule → whether the daemon lives, its journal, and words its sentence must have.
CASES = {
    "no-journal": (False, [], ["containerd's log"]),
    "refused": (
        False,
        [event("refused", container="c1", error='find container type: "pod" is not one')],
        ["before there was a pod", '"pod" is not one'],
    ),
    "daemon-failed": (
        False,
        [*RAN, event("daemon-failed", traceback="Traceback …\n  | ZeroDivisionError: division by zero\n")],
        ["ZeroDivisionError: division by zero", "bug"],
    ),
    "guest-panic": (
        False,
        [*RAN, *end("the guest rebooted", console=PANIC), ENDED],
        ["Kernel panic - not syncing: VFS: Unable to mount root fs"],
    ),
    "virtiofsd-died": (
        False,
        [
            *RAN,
            event("virtiofsd-ended", status=-11, stderr="assertion failed\n"),
            *end("virtiofsd ended with status -11", "-9"),
            ENDED,
        ],
        ["virtiofsd", "signal 11", "assertion failed"],
    ),
    "qemu-killed": (False, [*RAN, *end("QEMU was killed by SIGKILL", "-9"), ENDED], ["SIGKILL", "OOM", "dmesg"]),
    "boot-failed": (
        False,
        [
            DAEMON,
            event("boot-phase", phase="spawn", ms=3.0),
            event("boot-phase", phase="dial", ms=180000.0),
            event("boot-failed", error="dial agent: no answer in 180 s; QEMU lives, running"),
            *end("QEMU was killed by SIGKILL", "-9"),
            ENDED,
        ],
        ["did not boot", "phase dial", "no answer in 180 s"],
    ),
    "kill-escalated": (
        False,
        [
            *RAN,
            event("kill-escalated", container="c1", exec="", error="agent SignalProcess: no answer in 5 s"),
            *end("QEMU was killed by SIGKILL", "-9"),
            ENDED,
        ],
        ["SIGKILL for c1", "no answer in 5 s"],
    ),
    "agent-lost": (
        False,
        [
            *RAN,
            event("agent-lost", error="agent Check: no answer in 30 s"),
            *end("QEMU was killed by SIGKILL", "-9"),
            ENDED,
        ],
        ["agent", "no answer in 30 s"],
    ),
    "vm-ended": (
        False,
        [*RAN, *end("QEMU exited with status 1", "1", stderr="qemu: could not allocate memory\n"), ENDED],
        ["unexpectedly", "status 1", "could not allocate memory"],
    ),
    "exit-unknown": (
        False,
        [
            *RAN,
            event(
                "exited", container="c1", exec="", status=255, unknown="agent WaitProcess: c1: its reply is malformed"
            ),
            *end("asked to quit", expected=True),
            ENDED,
        ],
        ["c1", "status 255", "its reply is malformed"],
    ),
    "out-of-memory": (
        True,
        [*RAN, event("oom", container="c1"), event("exited", container="c1", exec="", status=137)],
        ["c1", "memory", "137"],
    ),
    "daemon-died": (False, [*RAN], ["daemon died", "created", "dmesg"]),
    "abandoned": (
        False,
        [
            *BOOTED,
            event("rpc", rpc="Create", call=1, ms=121000.4, cancelled=True),
            event("abandoned", container="c1"),
            ENDED,
        ],
        ["gave container c1 up", "Create, 121.0 s"],
    ),
    "expired": (False, [*BOOTED, event("expired", seconds=240.0), ENDED], ["never created", "240.0 s"]),
    "undo-failed": (
        False,
        [*RAN, event("undo-failed", container="c1", error="umount: /x: busy"), ENDED],
        ["c1", "would not go", "umount: /x: busy"],
    ),
    "rpc-failed": (
        False,
        [
            *BOOTED,
            event("rpc", rpc="Create", call=1, ms=3.0, code="INVALID_ARGUMENT", error="read config.json: no process"),
            event("rpc", rpc="State", call=2, ms=0.1, code="NOT_FOUND", error="no such container"),
            ENDED,
        ],
        ["Create failed with INVALID_ARGUMENT", "no process"],
    ),
    "no-descriptors": (
        True,
        [*RAN, event("accept-failed", error="Too many open files")],
        ["let nobody in", "Too many open files", "LimitNOFILE"],
    ),
    "containerd-gone": (False, [*RAN, event("events-dropped"), ENDED], ["containerd was gone"]),
    "container-exited": (
        False,
        [
            *RAN,
            event("exited", container="c1", exec="", status=143),
            *end("QEMU was asked to quit", expected=True),
            ENDED,
        ],
        ["Nothing went wrong with the pod", "c1", "143", "signal 15"],
    ),
    "booting": (True, [DAEMON, event("boot-phase", phase="spawn", ms=3.0)], ["booting", "spawn"]),
    "running": (True, [*RAN], ["runs"]),
    "ended-well": (
        False,
        [*RAN, event("exited", container="c1", exec="", status=0), *end("asked to quit", expected=True), ENDED],
        ["Nothing went wrong"],
    ),
}


def test_a_channel_that_ended_before_we_ended_the_vm_is_the_agents_loss():
    """Create failed for it, so containerd gave the pod up before the watch had spoken."""
    lost = event("channel-lost", error="the channel to the guest is lost")
    story = [*RAN, lost, *end("QEMU was asked to quit", "0", expected=True), ENDED]
    assert judge(tell(as_read(story), live=False)).rule == "agent-lost"


def test_a_channel_that_went_with_its_vm_is_not_blamed():
    lost = event("channel-lost", error="the channel to the guest is lost")
    story = [*RAN, lost, *end("QEMU was killed by SIGKILL", "-9"), ENDED]
    assert judge(tell(as_read(story), live=False)).rule == "qemu-killed"


def test_every_rule_has_a_case():
    assert list(CASES) == [rule.name for rule in RULES]


@pytest.mark.parametrize("rule", CASES)
def test_rule(rule):
    live, events, words = CASES[rule]
    verdict = judge(tell(as_read(events), live=live))
    assert verdict.rule == rule
    assert verdict.failed == next(known.failed for known in RULES if known.name == rule)
    missing = [word for word in words if word not in verdict.sentence]
    assert not missing, verdict.sentence
    assert verdict.sentence.endswith(".") and "\n" not in verdict.sentence


def test_qmp_can_tell_a_panic_when_the_console_says_nothing():
    story = tell(as_read([*RAN, event("qmp-event", name="GUEST_PANICKED", data="{}"), *end("panicked")]), live=False)
    assert judge(story).rule == "guest-panic"


def test_a_qemu_that_we_killed_is_not_blamed_on_the_host():
    killed = end("QEMU was killed by SIGKILL", "-9", expected=True)
    story = tell(as_read([*RAN, event("vm-stop-escalates", after="quit", seconds=2.0), *killed, ENDED]), live=False)
    assert judge(story).rule == "ended-well"


def test_a_boot_in_which_qemu_died_names_qemus_end():
    died = event("qemu-ended", cause="QEMU exited with status 1: no such machine", status="1")
    story = tell(as_read([DAEMON, died, event("boot-failed", error="start QEMU: …"), ENDED]), live=False)
    assert "no such machine" in judge(story).sentence


def test_a_daemon_that_dies_names_what_it_served():
    began = [event("rpc-began", rpc=name, call=call) for name, call in (("Create", 1), ("Start", 5), ("Delete", 7))]
    done = event("rpc", rpc="Create", call=1, ms=410.0)
    assert "while it served Start, Delete" in judge(tell(as_read([*BOOTED, *began, done]), live=False)).sentence


def test_only_the_last_daemon_can_have_died_of_something():
    """Calls are numbered by each daemon anew, and whatever ended an earlier one, another has gone on."""
    before = [event("rpc-began", rpc="Create", call=1), event("daemon-failed", traceback="ZeroDivisionError")]
    after = [SUCCESSOR, event("rpc-began", rpc="Delete", call=1)]
    killed = judge(tell(as_read([*BOOTED, *before, *after]), live=False))
    assert (killed.rule, "while it served Delete" in killed.sentence) == ("daemon-died", True)
    lives = judge(tell(as_read([*BOOTED, *before, *after]), live=True))
    assert (lives.rule, "daemon number 2" in lives.sentence) == ("running", True)
    failed = judge(tell(as_read([*BOOTED, *before, *after, before[1]]), live=False))
    assert failed.rule == "daemon-failed"
    upgraded = judge(tell(as_read([*BOOTED, ENDED, SUCCESSOR]), live=False))
    assert upgraded.rule == "daemon-died"


def test_137_without_a_memory_kill_is_an_exit_like_others():
    story = tell(as_read([*RAN, event("exited", container="c1", exec="", status=137), ENDED]), live=False)
    assert judge(story).rule == "container-exited"


def test_an_exec_that_fails_is_the_clients_business():
    story = tell(as_read([*RAN, event("exited", container="c1", exec="probe", status=1), ENDED]), live=False)
    assert judge(story).rule == "ended-well"


def test_a_long_error_is_cut_and_kept_on_one_line():
    story = tell(as_read([DAEMON, event("boot-failed", error="first\nsecond " + "x" * 5000)]), live=False)
    sentence = judge(story).sentence
    assert "first / second" in sentence and len(sentence) < 600


#: c1 and c2 are of one pod; what happened → the rule for c2 and words of its sentence, and the rule for the pod.
BOTH = (*RAN, event("created", container="c2", pid=7))
EXITED = event("exited", container="c2", exec="", status=3)
LATER = (event("exited", container="c1", exec="", status=137), event("exited", container="c1", exec="e", status=1))
OF_ONE = {
    "it exited, and the VM was killed later": (
        [*BOTH, EXITED, *end("QEMU was killed by SIGKILL", "-9"), ENDED],
        "container-exited", "c2 exited with status 3", "qemu-killed",
    ),
    "it ended well, and the daemon died later": (
        [*BOTH, event("exited", container="c2", exec="", status=0)], "ended-well", "c2 exited with status 0", "daemon-died",
    ),
    "the VM was killed under it": (
        [*BOTH, *end("QEMU was killed by SIGKILL", "-9"), event("exited", container="c2", exec="", status=255), ENDED],
        "qemu-killed", "OOM", "qemu-killed",
    ),
    "the VM was ended for the other": (
        [*BOTH, event("kill-escalated", container="c1", exec="", error="silent"), *end("QEMU was killed by SIGKILL", "-9"), ENDED],
        "kill-escalated", "SIGKILL for c1", "kill-escalated",
    ),
    "the other ran out of memory": (
        [*BOTH, event("oom", container="c1"), *LATER, EXITED, ENDED],
        "container-exited", "c2 exited with status 3", "out-of-memory",
    ),
    "a call for the other failed": (
        [*BOTH, event("rpc", rpc="Start", call=3, ms=1.0, container="c1", code="UNKNOWN", error="no"), EXITED, ENDED],
        "container-exited", "c2 exited", "rpc-failed",
    ),
    "its own Create failed": (
        [*RAN, event("rpc", rpc="Create", call=3, ms=1.0, container="c2", code="UNKNOWN", error="no program"), *LATER, ENDED],
        "rpc-failed", "Create failed with UNKNOWN: no program", "rpc-failed",
    ),
    "its name was used again": (
        [*BOTH, EXITED, event("deleted", container="c2"), event("created", container="c2", pid=7), *end("gone", "1"), ENDED],
        "vm-ended", "unexpectedly: gone", "vm-ended",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", OF_ONE)
def test_the_verdict_on_one_container_of_several(what):
    events, rule, words, of_the_pod = OF_ONE[what]
    story = tell(as_read(events), live=False)
    told = judge_container(story, "c2")
    assert (told.rule, judge(story).rule) == (rule, of_the_pod), told
    assert words in told.sentence


def test_a_container_that_came_too_late_is_not_the_pods_failure():
    late = event("refused", container="c9", error="find pod: sandbox s: no daemon serves its pod")
    story = tell(as_read([*RAN, ENDED, late]), live=False)
    assert judge(story).rule == "ended-well"
    told = judge_container(story, "c9")
    assert told.rule == "refused" and "no daemon serves its pod" in told.sentence


def test_a_container_that_runs_is_well():
    assert judge_container(tell(as_read(BOTH), live=True), "c2").rule == "running"


@pytest.mark.parametrize("rule", CASES)
def test_no_rule_trusts_the_shape_of_fields(rule):
    """A journal is ours, but texts in it were cut, and a newer version may have written it."""
    live, events, _ = CASES[rule]
    for odd in (None, [], {"a": 1}, -1, ""):
        bent = [(name, dict.fromkeys(fields, odd)) for name, fields in events]
        assert judge(tell(as_read(bent), live=live)).sentence
        assert judge_container(tell(as_read(bent), live=live), "c1").sentence
