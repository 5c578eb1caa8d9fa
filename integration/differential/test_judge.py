"""That a wrong answer is seen: each is planted in the record of a shim that does everything right. Without a machine."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import pytest

from integration.differential.compare import in_order
from integration.differential.intended import LIVES, RULES
from integration.differential.judge import judge, same
from integration.differential.lawful import OF_EXEC, OF_INIT, PAUSED
from integration.differential.model import annotate
from integration.differential.record import NOT_FOUND, OK, Outcome, Record, StepRecord
from integration.differential.recorder import MESSAGES
from integration.differential.rules import ITS_ID
from integration.differential.steps import Call, Program, Rpc, Sequence, Step

Plant = Callable[[Record], None]
ANSWER: Final = Outcome(OK, {})


def sequence(*calls: Call) -> Sequence:
    return Sequence("planted", annotate(Step((call,)) for call in calls))


def state(status: str, *, exit_status: int = 0, exec_id: str = "") -> Outcome:
    """What State answers; ``absent`` is no process."""
    if status == "absent":
        return Outcome(NOT_FOUND)
    when = "set" if status == "STOPPED" else "unset"
    return Outcome(
        OK, {"status": status, "pid": "pid", "exit_status": exit_status, "exited_at": when, "exec_id": exec_id}
    )


def event(topic: str, *, exec_id: str = "", exit_status: int | None = None) -> tuple[str, Mapping[str, Any]]:
    fields: dict[str, Any] = {"container_id": "c0"}
    if exit_status is not None:
        fields |= {"id": exec_id or "c0", "exit_status": exit_status}
    elif exec_id:
        fields |= {"exec_id": exec_id}
    return f"/tasks/{topic}", fields


CREATED, BEGUN, DELETED = event("create"), event("start"), event("delete")


def killed(exit_status: int) -> tuple[str, Mapping[str, Any]]:
    return event("exit", exit_status=exit_status)


def refused(record: Record, step: int, code: str) -> None:
    record.steps[step].outcomes[0] = Outcome(code)


# --- SIGTERM to an init ----------------------------------------------------------------------------------------------

TERM: Final = sequence(
    Call(Rpc.CREATE, program=Program.SLEEP), Call(Rpc.START), Call(Rpc.KILL, signal=15), Call(Rpc.DELETE)
)


def term(*states: Outcome, deleted: Outcome, status: int) -> Record:
    """``states``: after Kill and after Delete."""
    seen = [state("CREATED"), state("RUNNING"), *states]
    answers = [ANSWER, ANSWER, ANSWER, deleted]
    return Record(
        steps=[StepRecord([answer], {"c0": one}) for answer, one in zip(answers, seen, strict=True)],
        ends={"c0": "gone"},
        events={"c0": [CREATED, BEGUN, killed(status), DELETED]},
        outputs={"c0 #0": ("up\n", True)},
        identities={"c0": (1, 1)},
        told={("c0", "c0"): 2},
    )


def term_runc() -> Record:
    return term(state("RUNNING"), state("RUNNING"), deleted=Outcome("UNKNOWN"), status=137)


def term_ours() -> Record:
    gone = Outcome(OK, {"exit_status": 137, "exited_at": "set"})
    return term(state("STOPPED", exit_status=137), state("absent"), deleted=gone, status=137)


def test_a_life_that_is_lived_as_said_leaves_nothing() -> None:
    judged = judge(TERM, term_runc(), term_ours())
    assert judged.left == []
    assert {name for name, _ in judged.used} == {"term-kills-init"}


def test_starts_and_exits_of_execs_at_once_have_no_order_but_each_exec_has_its_own() -> None:
    e0, e1 = [[event("exec-started", exec_id=one), event("exit", exec_id=one, exit_status=3)] for one in ("e0", "e1")]
    together, apart = [CREATED, BEGUN, *e0, *e1], [CREATED, BEGUN, e1[0], e0[0], e0[1], e1[1]]
    assert in_order(together) == in_order(apart)
    assert in_order(together) != in_order([CREATED, BEGUN, e0[1], e0[0], *e1])
    added = event("exec-added", exec_id="e1")
    assert in_order([*e0, added, *e1]) != in_order([*e0[:1], added, e1[0], e0[1], e1[1]])


@pytest.mark.parametrize("wrong", [False, True])
def test_where_runcs_shim_has_died_ours_is_judged_by_itself_alone(*, wrong: bool) -> None:
    runc, ours = term_runc(), term_ours()
    refused(runc, 1, "LOST")
    runc.events["c0"] = [CREATED]
    if wrong:
        ours.events["c0"].insert(3, killed(137))
    assert bool(judge(TERM, runc, ours).left) is wrong
    refused(ours, 0, "INTERNAL")
    assert judge(TERM, runc, ours).left, "what was before is compared"


def other_state(record: Record) -> None:
    record.steps[2].states["c0"] = state("RUNNING")


def other_status(record: Record) -> None:
    """Everywhere the same wrong one."""
    record.events["c0"][2] = killed(143)
    record.steps[2].states["c0"] = state("STOPPED", exit_status=143)
    record.steps[3].outcomes[0] = Outcome(OK, {"exit_status": 143, "exited_at": "set"})


def no_exit(record: Record) -> None:
    record.events["c0"] = [CREATED, BEGUN, DELETED]


def delete_says_otherwise(record: Record) -> None:
    record.steps[3].outcomes[0] = Outcome(OK, {"exit_status": 0, "exited_at": "set"})


def state_says_otherwise(record: Record) -> None:
    record.steps[2].states["c0"] = state("STOPPED", exit_status=143)


def two_exits(record: Record) -> None:
    record.events["c0"].insert(3, killed(137))


def exit_after_delete(record: Record) -> None:
    record.events["c0"] = [CREATED, BEGUN, DELETED, killed(137)]


def event_before_the_parting(record: Record) -> None:
    record.events["c0"].insert(2, (PAUSED, {"container_id": "c0"}))
    record.told["c0", "c0"] = 3


def answer_before_the_parting(record: Record) -> None:
    refused(record, 1, "INTERNAL")


def other_output(record: Record) -> None:
    record.outputs["c0 #0"] = ("dn\n", True)


def runs_again(record: Record) -> None:
    record.steps[3].states["c0"] = state("RUNNING")


def cannot_be_ended(record: Record) -> None:
    record.ends["c0"] = "not deleted"


def two_pids(record: Record) -> None:
    record.identities["c0"] = (2, 1)


def shim_lost(record: Record) -> None:
    record.lost = True


@pytest.mark.parametrize(
    ("plant", "aspect"),
    [
        (lambda record: refused(record, 2, "INTERNAL"), "life.code"),
        (other_state, "life.state"),
        (other_status, "life.exit"),
        (no_exit, "life.exit"),
        (delete_says_otherwise, "lawful.status"),
        (state_says_otherwise, "lawful.status"),
        (two_exits, "lawful.order"),
        (exit_after_delete, "lawful.order"),
        (event_before_the_parting, "events"),
        (answer_before_the_parting, "code"),
        (other_output, "output"),
        (runs_again, "lawful.state"),
        (cannot_be_ended, "lawful.end"),
        (two_pids, "lawful.identity"),
        (shim_lost, "lawful.shim"),
    ],
)
def test_a_wrong_answer_of_ours_in_a_life_is_seen(plant: Plant, aspect: str) -> None:
    ours = term_ours()
    plant(ours)
    assert aspect in {difference.aspect for difference in judge(TERM, term_runc(), ours).left}


def test_runcs_turn_is_checked_too() -> None:
    """A rule whose half on runc's side is no longer true does not go on excusing ours."""
    runc = term_runc()
    runc.steps[2].states["c0"] = state("STOPPED", exit_status=143)
    assert "life.state" in {difference.aspect for difference in judge(TERM, runc, term_ours()).left}


def test_a_life_begins_only_where_runc_answers_as_said() -> None:
    """Then both are compared as everywhere."""
    runc = term_runc()
    refused(runc, 2, "UNAVAILABLE")
    judged = judge(TERM, runc, term_ours())
    assert "code" in {difference.aspect for difference in judged.left}
    assert judged.used == set()


def test_runc_beside_itself_is_excused_nothing() -> None:
    assert same(TERM, term_runc(), term_runc()).left == []
    assert same(TERM, term_runc(), term_ours()).left != []


# --- an exec before Start --------------------------------------------------------------------------------------------

EARLY: Final = sequence(
    Call(Rpc.CREATE, program=Program.SLEEP),
    Call(Rpc.EXEC, process="e0", program=Program.SLEEP),
    Call(Rpc.START),
    Call(Rpc.PIDS),
)


def early(answer: Outcome, exec_state: Outcome, *told: tuple[str, Mapping[str, Any]], execs: tuple[str, ...]) -> Record:
    pids = Outcome(OK, {"processes": {"empty": False, "zero": False, "execs": list(execs)}})
    steps = [
        StepRecord([ANSWER], {"c0": state("CREATED")}),
        StepRecord([answer], {"c0": state("CREATED"), "c0/e0": exec_state}),
        StepRecord([ANSWER], {"c0": state("RUNNING"), "c0/e0": exec_state}),
        StepRecord([pids], {"c0": state("RUNNING"), "c0/e0": exec_state}),
    ]
    events = {"c0": [CREATED, *told, BEGUN, killed(137), DELETED]}
    return Record(steps, ends={"c0": "gone"}, events=events, told={("c0/e0", "c0"): 1})


def early_runc() -> Record:
    return early(ANSWER, state("CREATED"), event("exec-added", exec_id="e0"), execs=("e0",))


def early_ours() -> Record:
    return early(Outcome("FAILED_PRECONDITION"), state("absent"), execs=())


def test_an_exec_parts_alone() -> None:
    assert judge(EARLY, early_runc(), early_ours()).left == []


def init_differs_later(record: Record) -> None:
    record.steps[2].states["c0"] = state("PAUSED")


def init_tells_another_end(record: Record) -> None:
    record.events["c0"][2] = killed(1)


def exec_is_there(record: Record) -> None:
    record.steps[1].states["c0/e0"] = state("CREATED", exec_id="e0")


def stranger_among_the_pids(record: Record) -> None:
    record.steps[3].outcomes[0] = Outcome(OK, {"processes": {"empty": False, "zero": False, "execs": ["e1"]}})


@pytest.mark.parametrize(
    ("plant", "aspect"),
    [
        (lambda record: refused(record, 1, "INVALID_ARGUMENT"), "life.code"),
        (exec_is_there, "life.state"),
        (init_differs_later, "state.status"),
        (init_tells_another_end, "events"),
        (stranger_among_the_pids, "reply.processes.execs"),
    ],
)
def test_the_rest_of_its_container_is_compared_to_the_end(plant: Plant, aspect: str) -> None:
    ours = early_ours()
    plant(ours)
    assert aspect in {difference.aspect for difference in judge(EARLY, early_runc(), ours).left}


# --- answers ---------------------------------------------------------------------------------------------------------

NAMED: Final = sequence(
    Call(Rpc.CREATE, program=Program.SLEEP),
    Call(Rpc.START),
    Call(Rpc.EXEC, process="e0", program=Program.SLEEP),
    Call(Rpc.STATE, process="e0"),
    Call(Rpc.KILL, signal=9),
    Call(Rpc.PIDS),
)


def named(exec_id: str, *, empty: bool) -> Record:
    running = {"c0": state("RUNNING"), "c0/e0": state("CREATED", exec_id=exec_id)}
    stopped = {**running, "c0": state("STOPPED", exit_status=137)}
    steps = [
        StepRecord([ANSWER], {"c0": state("CREATED")}),
        StepRecord([ANSWER], {"c0": state("RUNNING")}),
        StepRecord([ANSWER], dict(running)),
        StepRecord([running["c0/e0"]], dict(running)),
        StepRecord([ANSWER], dict(stopped)),
        StepRecord([Outcome(OK, {"processes": {"empty": empty, "zero": False, "execs": []}})], dict(stopped)),
    ]
    told = [CREATED, BEGUN, event("exec-added", exec_id="e0"), killed(137), DELETED]
    return Record(steps, ends={"c0": "gone"}, events={"c0": told})


def test_answers_as_said_leave_nothing() -> None:
    judged = judge(NAMED, named("", empty=True), named("e0", empty=False))
    assert judged.left == []
    assert {name for name, _ in judged.used} == {"state-names-exec", "state-of-an-exec", "pids-of-stopped"}


def names_another_after_exec(record: Record) -> None:
    record.steps[2].states["c0/e0"] = state("CREATED", exec_id="e1")


def names_another_when_asked(record: Record) -> None:
    record.steps[3].outcomes[0] = state("CREATED", exec_id="c0")


def pid_zero(record: Record) -> None:
    record.steps[5].outcomes[0] = Outcome(OK, {"processes": {"empty": False, "zero": True, "execs": []}})


def ended_exec_among_the_pids(record: Record) -> None:
    record.steps[5].outcomes[0] = Outcome(OK, {"processes": {"empty": False, "zero": False, "execs": ["e0"]}})


@pytest.mark.parametrize(
    ("plant", "aspect"),
    [
        (names_another_after_exec, "state.exec_id"),
        (names_another_when_asked, "reply.exec_id"),
        (pid_zero, "reply.processes.zero"),
        (ended_exec_among_the_pids, "reply.processes.execs"),
    ],
)
def test_another_value_than_the_meant_one_is_seen(plant: Plant, aspect: str) -> None:
    ours = named("e0", empty=False)
    plant(ours)
    assert [one.aspect for one in judge(NAMED, named("", empty=True), ours).left] == [aspect]


# --- the tables ------------------------------------------------------------------------------------------------------


def test_no_rule_lets_anything_pass() -> None:
    """Whatever a rule meets, it says what either shim does there."""
    pinned = [rule for rule in RULES if rule not in LIVES]
    assert [rule.name for rule in pinned if not rule.runc or not rule.ours] == []
    assert ITS_ID not in {value for rule in pinned for value in rule.runc}
    assert [life.name for life in LIVES if not life.runc.code or not life.ours.code] == []
    assert [life.name for life in LIVES if life.runc == life.ours] == []


def test_what_is_lawful_speaks_of_topics_that_there_are() -> None:
    for table in (OF_INIT, OF_EXEC):
        named = {*table, *(topic for topics in table.values() for topic in topics)} - {""}
        assert named <= MESSAGES.keys()
