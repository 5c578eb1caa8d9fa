"""Judges two records: where containers part as `intended` says, whether both do there what is said, and what else differs."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from integration.differential.compare import (
    Difference,
    Facts,
    answers,
    apart,
    compare,
    process_of,
    situations,
)
from integration.differential.intended import ANSWERS, LIVES
from integration.differential.lawful import unlawful
from integration.differential.record import LOST, NOT_FOUND, OK, Outcome, Record
from integration.differential.rules import Life, Turn
from integration.differential.steps import Call, Rpc, Sequence

ALREADY_EXISTS: Final = "ALREADY_EXISTS"
EXIT: Final = "/tasks/exit"


@dataclass(frozen=True, slots=True)
class Parting:
    """Where a `Life` begins."""

    step: int
    call: Call
    facts: Facts
    life: Life

    @property
    def target(self) -> str:
        return self.life.scope.target(self.call)


@dataclass(slots=True)
class Judgement:
    """What no rule covers, and the rules that covered the rest, each with the situation in which it held."""

    left: list[Difference]
    used: set[tuple[str, str]]


def judge(sequence: Sequence, runc: Record, ours: Record) -> Judgement:
    """Compare two records."""
    partings = list(_partings(sequence, runc))
    parted = {one.target: one.step for one in reversed(partings)}
    used = {(one.life.name, _situation(one.facts)) for one in partings}
    left = [difference for one in partings for difference in _as_said(sequence, one, runc, ours)]
    died = _died(runc)
    for difference in compare(sequence, runc, ours, parted):
        if difference.step >= died:
            continue
        rule = next((rule for rule in ANSWERS if rule.covers(difference)), None)
        if rule is None:
            left.append(difference)
        else:
            used.add((rule.name, f"{_situation(difference.facts)}: {difference.runc} → {difference.ours}"))
    return Judgement([*left, *unlawful(sequence, ours)], used)


def _died(runc: Record) -> int:
    """The step at which runc's shim was lost; it panics now and then, and then there is nothing to compare with. Ours is still
    judged by itself (`unlawful`), and what it must make of a request that kills runc's for certain is a `Life`'s to say.
    """
    lost = (number for number, step in enumerate(runc.steps) if any(one.code == LOST for one in step.outcomes))
    return next(lost, sys.maxsize)


def same(sequence: Sequence, runc: Record, other: Record) -> Judgement:
    """Compare two records of runc's own shim, between which nothing is meant to differ."""
    return Judgement(list(compare(sequence, runc, other, {})), set())


def _situation(facts: Facts) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items())


# --- lives -----------------------------------------------------------------------------------------------------------


def possible(sequence: Sequence, record: Record, number: int) -> Iterator[Parting]:
    """The lives that may begin at a step, as far as the situation tells."""
    for call, facts in situations(sequence, record, number):
        if (life := next((life for life in LIVES if life.begins(facts)), None)) is not None:
            yield Parting(number, call, facts, life)


def _partings(sequence: Sequence, runc: Record) -> Iterator[Parting]:
    """Those that do begin: runc answered as said. Where it did not, both are compared as everywhere."""
    parted: dict[str, int] = {}
    for number in range(len(sequence.steps)):
        for one in possible(sequence, runc, number):
            codes = {outcome.code for outcome in answers(sequence, runc, number, one.call)}
            if not apart(parted, one.call.target, number) and one.life.runc.code in codes:
                parted[one.target] = number
                yield one


def _as_said(sequence: Sequence, one: Parting, runc: Record, ours: Record) -> Iterator[Difference]:
    """What either does at the parting that its turn does not say."""
    for aspect, look in (("code", _codes), ("state", _next_state), ("exit", _exit)):
        sides = [look(sequence, one, *side) for side in ((runc, one.life.runc), (ours, one.life.ours))]
        if any(found != wanted for found, wanted in sides):
            words = [found if found == wanted else f"{found} instead of {wanted}" for found, wanted in sides]
            facts = {**one.facts, "life": one.life.name}
            yield Difference(one.step, one.call.target, f"life.{aspect}", *words, facts, str(one.call))


Seen = tuple[str, str]


def _codes(sequence: Sequence, one: Parting, record: Record, turn: Turn) -> Seen:
    """All answers to equal calls are the same, but of execs added at once with one id the first alone is."""
    found = {outcome.code for outcome in answers(sequence, record, one.step, one.call)}
    if one.call.rpc is Rpc.EXEC and turn.code == OK:
        found.discard(ALREADY_EXISTS)
    return " and ".join(sorted(found)), turn.code


def _next_state(sequence: Sequence, one: Parting, record: Record, turn: Turn) -> Seen:
    seen = record.steps[one.step].states.get(one.call.target)
    if seen is None:  # not looked at: an open step, or an id that no State is asked with
        return "", ""
    wanted = "stopped" if turn.status(one.call) is not None else turn.state or one.facts["state"]
    return _state(seen), wanted


def _state(seen: Outcome) -> str:
    if seen.reply is not None:
        return str(seen.reply["status"]).lower()
    return "absent" if seen.code == NOT_FOUND else seen.code.lower()


def _exit(sequence: Sequence, one: Parting, record: Record, turn: Turn) -> Seen:
    """The status with which a signal that ends the process was told to have ended it."""
    wanted = turn.status(one.call)
    if wanted is None:
        return "", ""
    container = one.call.container
    events = record.events[container][record.told.get((one.target, container), 0) :]
    exits = [
        event[1]["exit_status"]
        for event in events
        if event[0] == EXIT and process_of(container, event) == one.call.target
    ]
    return str(exits[0]) if exits else "none", str(wanted)
