"""What must hold of our shim's record by itself, whatever runc's did: so also of containers that are compared no more."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, Final

from integration.differential.compare import AFTER, Difference, process_of
from integration.differential.record import NOT_FOUND, Record
from integration.differential.steps import Rpc, Sequence

CREATE, ADDED, STARTED, EXEC_STARTED = "/tasks/create", "/tasks/exec-added", "/tasks/start", "/tasks/exec-started"
EXIT, DELETE, PAUSED, RESUMED = "/tasks/exit", "/tasks/delete", "/tasks/paused", "/tasks/resumed"
#: What may be told of a process after what: of an init, and of an exec, which can be deleted and added again without a word.
OF_INIT: Final[Mapping[str, frozenset[str]]] = {
    "": frozenset({CREATE}),
    CREATE: frozenset({STARTED, EXIT, DELETE}),
    STARTED: frozenset({PAUSED, EXIT}),
    PAUSED: frozenset({RESUMED, EXIT}),
    RESUMED: frozenset({PAUSED, EXIT}),
    EXIT: frozenset({DELETE}),
    DELETE: frozenset({CREATE}),
}
OF_EXEC: Final[Mapping[str, frozenset[str]]] = {
    "": frozenset({ADDED}),
    ADDED: frozenset({ADDED, EXEC_STARTED, DELETE}),
    EXEC_STARTED: frozenset({EXIT}),
    EXIT: frozenset({ADDED, DELETE}),
    DELETE: frozenset({ADDED}),
}
#: What State may tell of an init after what. An exec shows its container's pause, so that anything may follow that.
NEXT: Final[Mapping[str, frozenset[str]]] = {
    "CREATED": frozenset({"CREATED", "RUNNING", "PAUSED", "STOPPED"}),
    "RUNNING": frozenset({"RUNNING", "PAUSED", "STOPPED"}),
    "PAUSED": frozenset({"RUNNING", "PAUSED", "STOPPED"}),
    "STOPPED": frozenset({"STOPPED"}),
}


def unlawful(sequence: Sequence, record: Record) -> Iterator[Difference]:
    """What cannot be right."""
    yield from _ends(record)
    for container in record.events:
        yield from _order(record, container)
    yield from _states(record)
    yield from _statuses(sequence, record)


def _wrong(target: str, aspect: str, wanted: str, found: str, step: int = AFTER, call: str = "") -> Difference:
    """``wanted`` stands where runc's would: it is what is lawful."""
    return Difference(step, target, f"lawful.{aspect}", wanted, found, {"rpc": "(lawful)"}, call)


def _ends(record: Record) -> Iterator[Difference]:
    if record.lost:
        yield _wrong("", "shim", "there", "gone")
    for container, end in record.ends.items():
        if end != "gone":
            yield _wrong(container, "end", "gone", end)
    added = defaultdict(int)
    for container, events in record.events.items():
        for event in events:
            added[process_of(container, event)] += event[0] in (CREATE, ADDED)
    for target, counts in record.identities.items():
        if max(counts) > max(1, added[target]):
            yield _wrong(target, "identity", "one", f"{counts[0]} pids, {counts[1]} exit times")


def _order(record: Record, container: str) -> Iterator[Difference]:
    last: dict[str, str] = {}
    for topic, fields in record.events[container]:
        target = process_of(container, (topic, fields))
        allowed = OF_INIT if target == container else OF_EXEC
        before = last.get(target, "")
        if topic not in allowed[before]:
            yield _wrong(target, "order", " or ".join(sorted(allowed[before])), f"{topic} after {before or 'nothing'}")
            return
        if target != container and last.get(container, DELETE) == DELETE:
            yield _wrong(target, "order", "a container", f"{topic} without one")
            return
        last[target] = topic


def _states(record: Record) -> Iterator[Difference]:
    last: dict[str, str] = {}
    for number, step in enumerate(record.steps):
        for target, seen in step.states.items():
            if seen.code == NOT_FOUND:
                last.pop(target, None)
            if seen.reply is None:
                continue
            before, now = last.get(target, "CREATED"), str(seen.reply["status"])
            free = "/" in target and before == "PAUSED"
            if not free and now not in NEXT[before]:
                yield _wrong(target, "state", " or ".join(sorted(NEXT[before])), f"{now} after {before}", number)
            last[target] = now


def _statuses(sequence: Sequence, record: Record) -> Iterator[Difference]:
    """Whoever tells an exit status tells one that an exit event told of the process."""
    told: defaultdict[str, set[int]] = defaultdict(set)
    for container, events in record.events.items():
        for topic, fields in events:
            if topic == EXIT:
                told[process_of(container, (topic, fields))].add(fields["exit_status"])
    for number, target, call, reply in _ended(sequence, record):
        if reply["exited_at"] == "set" and reply["exit_status"] not in told[target]:
            wanted = " or ".join(map(str, sorted(told[target])))
            yield _wrong(target, "status", wanted, str(reply["exit_status"]), number, call)


def _ended(sequence: Sequence, record: Record) -> Iterator[tuple[int, str, str, Mapping[str, Any]]]:
    """Every reply that tells how and when a process ended: of one that never ran there is no time."""
    for number, step in enumerate(sequence.steps):
        answered = zip(step.calls, record.steps[number].outcomes, strict=True)
        held = [(step.calls[index], one) for (at, index), one in record.waits.items() if at == number]
        for call, outcome in (*answered, *held):
            if call.rpc in (Rpc.WAIT, Rpc.DELETE) and outcome.reply is not None:
                yield number, call.target, str(call), outcome.reply
        for target, seen in record.steps[number].states.items():
            if seen.reply is not None:
                yield number, target, f"State {target}", seen.reply
