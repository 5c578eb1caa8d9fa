"""How two records of one sequence differ, and in which situation each difference stands."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from integration.differential.record import NOT_FOUND, OK, Outcome, Record
from integration.differential.steps import Call, Rpc, Sequence

Facts = Mapping[str, str]
#: From which step on what is not compared: a process ``c0/e0``, a container with its execs ``c0``, or, empty, everything.
Parted = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Difference:
    """``aspect``: ``code``, ``reply.exit_status``, ``state.status``, ``late``, ``events``, ``output``, …"""

    step: int
    #: The process that is looked at: ``c0`` or ``c0/e0``; empty for the shim itself.
    target: str
    aspect: str
    runc: str
    ours: str
    facts: Facts
    #: What was called, and what the shims said of it: for people.
    call: str = field(default="", compare=False)
    texts: tuple[str, str] = field(default=("", ""), compare=False)

    def __str__(self) -> str:
        facts = ", ".join(f"{name} {value}" for name, value in self.facts.items() if name != "rpc")
        lines = [f"step {self.step}: {self.call or self.target}: {self.aspect}: runc {self.runc}, ours {self.ours}"]
        lines.append(f"    where {facts}")
        lines += [f"    {who}: {text}" for who, text in zip(("runc", "ours"), self.texts, strict=True) if text]
        return "\n".join(lines)

    @property
    def ours_alone(self) -> tuple[str, ...]:
        """What ours did, whatever runc did."""
        return (str(self.step), self.target, self.call, self.aspect, self.ours)

    @property
    def kind(self) -> tuple[str, ...]:
        """What stays when the sequence is made shorter."""
        return (
            self.aspect,
            self.runc,
            self.ours,
            *(self.facts.get(name, "") for name in ("rpc", "process", "state", "flaw")),
        )


AFTER: Final = 1 << 20
#: An exec id of this length is no longer one of the generator's own.
LONG: Final = 100


def apart(parted: Parted, target: str, step: int) -> bool:
    """Whether the process lives differently by this step."""
    return any(step >= parted.get(name, step + 1) for name in ("", target.partition("/")[0], target))


def compare(sequence: Sequence, runc: Record, ours: Record, parted: Parted) -> Iterator[Difference]:
    """Every difference, in the order of the steps; what is seen only at the end comes last. What has parted is left out."""
    for difference in _all(sequence, runc, ours, parted):
        if not apart(parted, difference.target, difference.step):
            yield difference
    yield from _events(runc, ours, parted)
    yield from _outputs(runc, ours, parted)


def _all(sequence: Sequence, runc: Record, ours: Record, parted: Parted) -> Iterator[Difference]:
    for number, step in enumerate(sequence.steps):
        yield from _step(sequence, number, runc, ours, parted)
        for key in sorted(key for key in runc.waits if key[0] == number):
            call = step.calls[key[1]]
            facts = {**_facts(sequence, call, runc, number), "held": "yes"}
            yield from _outcome(AFTER, call, facts, runc.waits[key], ours.waits[key])
    for container in runc.ends:
        if runc.ends[container] != ours.ends[container]:
            yield Difference(AFTER, container, "end", runc.ends[container], ours.ends[container], {"rpc": "(end)"})
    yield from _shims(runc, ours)


def _step(sequence: Sequence, number: int, runc: Record, ours: Record, parted: Parted) -> Iterator[Difference]:
    """A step's answers, those to equal calls in any order; what did not come; and State afterwards."""
    calls = sequence.steps[number].calls
    truth, other = runc.steps[number], ours.steps[number]
    for call in dict.fromkeys(calls):
        facts = _facts(sequence, call, runc, number)
        one, two = (answers(sequence, record, number, call) for record in (runc, ours))
        if call.rpc is Rpc.PIDS:
            gone = {name for name in parted if apart(parted, name, number)}
            one, two = ([_without(gone, call.container, outcome) for outcome in group] for group in (one, two))
        for mine, theirs in _paired(one, two):
            yield from _outcome(number, call, facts, mine, theirs)
    only = calls[0]
    facts = _facts(sequence, only, runc, number)
    for wanted in sorted(set(truth.late) ^ set(other.late)):
        words = [f"no {wanted}" if wanted in late else wanted for late in (truth.late, other.late)]
        yield Difference(number, wanted.partition(" ")[2], "late", *words, facts, str(only))
    for target in truth.states:
        call = next((one for one in calls if one.target == target), only)
        yield from _state(
            number, call, target, _facts(sequence, call, runc, number), truth.states[target], other.states[target]
        )


def answers(sequence: Sequence, record: Record, number: int, call: Call) -> list[Outcome]:
    """To all calls of a step that are equal to this one."""
    calls = sequence.steps[number].calls
    found = [record.steps[number].outcomes[index] for index, one in enumerate(calls) if one == call and not call.held]
    return _first_come(found) if call.rpc is Rpc.KILL else found


def _without(gone: Iterable[str], container: str, outcome: Outcome) -> Outcome:
    """A reply of Pids without the execs that have parted."""
    if outcome.reply is None:
        return outcome
    processes = outcome.reply["processes"]
    left = [exec_id for exec_id in processes["execs"] if f"{container}/{exec_id}" not in gone]
    return replace(outcome, reply={**outcome.reply, "processes": {**processes, "execs": left}})


def _first_come(outcomes: list[Outcome]) -> list[Outcome]:
    """Of signals sent at once, those that come when the first has ended the process are answered so or so."""
    reached = next((one for one in outcomes if one.code == OK), None)
    return [reached if reached and one.code == NOT_FOUND else one for one in outcomes]


def _paired(runc: list[Outcome], ours: list[Outcome]) -> Iterator[tuple[Outcome, Outcome]]:
    """Answers to equal calls, which stand in no order: those that differ."""
    left = list(ours)
    alone = [one for one in runc if one not in left or left.remove(one)]
    yield from zip(sorted(alone, key=_order), sorted(left, key=_order), strict=True)


def _outcome(number: int, call: Call, facts: Facts, runc: Outcome, ours: Outcome) -> Iterator[Difference]:
    texts = (runc.text, ours.text)
    if runc.code != ours.code:
        yield Difference(number, call.target, "code", runc.code, ours.code, facts, str(call), texts)
    elif runc.reply is not None and ours.reply is not None:
        for name, one, two in _unequal(runc.reply, ours.reply):
            yield Difference(number, call.target, f"reply.{name}", one, two, facts, str(call), texts)


def _state(number: int, call: Call, target: str, facts: Facts, runc: Outcome, ours: Outcome) -> Iterator[Difference]:
    seen = {**facts, "seen": _kind(target, call)}
    if runc.code != ours.code:
        yield Difference(number, target, "state.code", runc.code, ours.code, seen, str(call), (runc.text, ours.text))
    elif runc.reply is not None and ours.reply is not None:
        for name, one, two in _unequal(runc.reply, ours.reply):
            yield Difference(number, target, f"state.{name}", one, two, seen, str(call))


def _kind(target: str, call: Call) -> str:
    """How an observed process stands to the call before."""
    if target == call.target:
        return "itself"
    return "its exec" if "/" in target else "its init"


def _unequal(runc: Mapping[str, Any], ours: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    for name in runc:
        if name == "processes":
            yield from ((f"{name}.{part}", *words) for part, *words in _unequal(runc[name], ours[name]))
        elif runc[name] != ours[name]:
            yield name, _text(runc[name]), _text(ours[name])


def _order(outcome: Outcome) -> str:
    return outcome.code + json.dumps(outcome.reply, sort_keys=True)


def _text(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value, sort_keys=True)


# --- the end of a sequence -------------------------------------------------------------------------------------------


def _events(runc: Record, ours: Record, parted: Parted) -> Iterator[Difference]:
    for container in runc.events:
        one, two = (in_order(_comparable(record, container, parted)) for record in (runc, ours))
        if one == two:
            continue
        place = next(
            index for index in range(max(len(one), len(two)) + 1) if one[index : index + 1] != two[index : index + 1]
        )
        words = [", ".join(_event(*event) for event in events[place:]) or "nothing more" for events in (one, two)]
        after = _event(*one[place - 1]) if place else "nothing"
        yield Difference(AFTER, container, "events", *words, {"rpc": "(events)", "after": after})


def _comparable(record: Record, container: str, parted: Parted) -> list[tuple[str, Mapping[str, Any]]]:
    """A container's events up to where it parted, and without those that its parted execs told from there on."""
    told = {name: record.told.get((name, container), 0) for name in parted}
    cut = min((told[name] for name in ("", container) if name in parted), default=None)
    return [
        event
        for index, event in enumerate(record.events[container][:cut])
        if index < told.get(process_of(container, event), index + 1)
    ]


def process_of(container: str, event: tuple[str, Mapping[str, Any]]) -> str:
    """The name of the process that an event is about, as a call would have it."""
    topic, fields = event
    if topic in ("/tasks/exec-added", "/tasks/exec-started"):
        exec_id = fields["exec_id"]
        # An id that is no identifier is written with a sign, and one that is the container's with another.
        return f"{container}/{'@' if exec_id == container else exec_id if _plain(exec_id) else f'={exec_id}'}"
    exec_id = fields.get("id") or container
    return container if exec_id == container else f"{container}/{exec_id}"


def _plain(exec_id: str) -> bool:
    return exec_id.isalnum() and len(exec_id) < LONG


def in_order(events: list[tuple[str, Mapping[str, Any]]]) -> list[tuple[str, Mapping[str, Any]]]:
    """As told, but starts and exits of execs that follow each other in the order of their ids: processes that are started or killed
    at once have none. Each has its own.

    What was killed in a pause ends with it, so such an exit comes before or after ``resumed``, even of runc's.
    """
    ordered: list[tuple[str, Mapping[str, Any]]] = []
    run: list[tuple[str, Mapping[str, Any]]] = []
    for event in events:
        if _exec_of(event):
            run.append(event)
            continue
        if event[0] == "/tasks/resumed":
            ordered.append(event)
            continue
        ordered += [*sorted(run, key=_exec_of), event]
        run = []
    return ordered + sorted(run, key=_exec_of)


def _exec_of(event: tuple[str, Mapping[str, Any]]) -> str:
    """The exec that an event tells the start or exit of."""
    topic, fields = event
    if topic == "/tasks/exec-started":
        return str(fields["exec_id"])
    return str(fields["id"]) if topic == "/tasks/exit" and fields["id"] != fields["container_id"] else ""


def _event(topic: str, fields: Mapping[str, Any]) -> str:
    shown = [
        f"{name}={value}"
        for name, value in fields.items()
        if value and name not in ("container_id", "bundle", "rootfs", "io")
    ]
    return " ".join([topic.removeprefix("/tasks/"), *shown])


def _output(value: tuple[str, bool]) -> str:
    """Whether the end was seen matters to who has read something; of what never ran, the streams may stay unopened."""
    text, ended = value
    return f"{text!r}, {'ended' if ended else 'open'}" if text else "nothing"


def _outputs(runc: Record, ours: Record, parted: Parted) -> Iterator[Difference]:
    """Of what has parted, one may have said more than the other, and nothing else."""
    for attempt, value in runc.outputs.items():
        target = attempt.partition(" ")[0]
        other = ours.outputs[attempt]
        short, long = sorted((value[0], other[0]), key=len)
        same = long.startswith(short) if apart(parted, target, AFTER) else _output(value) == _output(other)
        if not same:
            yield Difference(AFTER, target, "output", _output(value), _output(other), {"rpc": "(output)"}, attempt)


def _shims(runc: Record, ours: Record) -> Iterator[Difference]:
    if runc.lost != ours.lost:
        words = ["gone" if record.lost else "there" for record in (runc, ours)]
        yield Difference(AFTER, "", "shim", *words, {"rpc": "(end)"})
    if runc.shim_ended != ours.shim_ended:
        words = ["ends" if record.shim_ended else "stays" for record in (runc, ours)]
        yield Difference(AFTER, "", "shim", *words, {"rpc": str(Rpc.SHUTDOWN)})


# --- the situation ---------------------------------------------------------------------------------------------------


def situations(sequence: Sequence, record: Record, number: int) -> Iterator[tuple[Call, Facts]]:
    """Of every call of a step: the situation in which it was issued."""
    for call in sequence.steps[number].calls:
        yield call, _facts(sequence, call, record, number)


def _facts(sequence: Sequence, call: Call, runc: Record, number: int) -> Facts:
    """The situation in which a call was issued. What it was can only be told by runc: the records are equal up to here."""
    facts = {
        "rpc": str(call.rpc),
        "process": "exec" if call.process else "init",
        "state": _known(runc, number, call.target),
        "container": _known(runc, number, call.container),
    }
    if (made := _maker(sequence, number, call.target)) is not None:
        facts["runs"] = str(made.program)
        facts |= {"made": made.flaw} if made.flaw else {}
        facts |= {"console": "yes"} if made.terminal else {}
    if call.container.startswith("="):
        facts["id"] = "malformed" if call.container != "=nobody" else "unknown"
    elif call.process.startswith("="):
        facts["id"] = "malformed"
    if call.process == "@":
        facts["id"] = "reserved"
    for name in ("program", "signal", "flaw"):
        if value := getattr(call, name):
            facts[name] = str(value)
    for name in ("terminal", "stdin", "everyone"):
        if getattr(call, name):
            facts[name] = "yes"
    return facts


def _maker(sequence: Sequence, number: int, target: str) -> Call | None:
    """The call that was last to create a process under this name."""
    made = [call for step in sequence.steps[:number] for call in step.calls if call.program and call.target == target]
    return made[-1] if made else None


def _known(runc: Record, number: int, target: str) -> str:
    """The state that runc's shim last told of a process before a step."""
    for step in reversed(runc.steps[:number]):
        if (seen := step.states.get(target)) is not None:
            return str(seen.reply["status"]).lower() if seen.reply else "absent"
    return "absent"
