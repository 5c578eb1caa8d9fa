"""Replays sequences on both shims, judges the differences, and makes a sequence that shows one as short as it gets.

The truth is whatever runc's shim does. Where calls are issued at once it may do several things, so a
difference counts only when it stands against every one of a few replays, among them the same calls one by one in some order.
"""

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from integration.differential.compare import Difference
from integration.differential.driver import Orders, replay, replay_alone
from integration.differential.judge import judge, same
from integration.differential.model import annotate
from integration.differential.record import Record
from integration.differential.shim import Kind, Shim
from integration.differential.steps import Sequence

_log = logging.getLogger(__name__)

#: Replays of runc's that may explain a record of ours with concurrent calls.
AGAIN = 4
ORDERS = 12
#: Replays that making a sequence shorter may take.
SHRINKS = 60


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is left unexplained, and the rules that explained the rest."""

    differences: list[Difference]
    #: Each with the situation in which it held.
    used: frozenset[tuple[str, str]] = frozenset()

    def __str__(self) -> str:
        return "\n".join(map(str, self.differences))


@dataclass(slots=True)
class Side:
    """One shim with its pod, made anew when it is spoilt."""

    kind: Kind
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    _shim: Shim | None = None
    _number: int = 0

    async def replay(self, sequence: Sequence, orders: Orders | None = None) -> Record:
        if sequence.alone:
            return await replay_alone(self.kind, sequence, orders)
        if self._shim is None:
            self._shim = await self._stack.enter_async_context(Shim(self.kind))
        self._number += 1
        record = await replay(self._shim, sequence, self._number, orders)
        self._shim.spoilt = _spoilt(record)
        if self._shim.spoilt:
            _log.warning("%s: %s is spoilt by %s\n%s", self.kind.name, record.ends, sequence, self._shim.evidence())
            await self.close()
        return record

    async def close(self) -> None:
        stack, self._stack, self._shim = self._stack, AsyncExitStack(), None
        await stack.aclose()


def _spoilt(record: Record) -> bool:
    """Whether a pod cannot be used for another sequence."""
    return record.lost or any(end != "gone" for end in record.ends.values())


class Pair:
    """runc's shim and another one; runc's a second time is the check of this very machinery."""

    def __init__(self, runc: Kind, other: Kind) -> None:
        self.runc, self.other = Side(runc), Side(other)

    async def judge(self, sequence: Sequence) -> Verdict:
        """Replay on both."""
        async with asyncio.TaskGroup() as group:
            one = group.create_task(self.runc.replay(sequence), name="runc")
            two = group.create_task(self.other.replay(sequence), name="other")
        truth, ours = one.result(), two.result()
        verdict = self._verdict(sequence, truth, ours)
        if not verdict.differences or not _concurrent(sequence):
            return verdict
        left = verdict.differences
        async for truth in self._other_truths(sequence):
            again = {difference.ours_alone for difference in self._verdict(sequence, truth, ours).differences}
            left = [difference for difference in left if difference.ours_alone in again]
            if not left:
                break
        return Verdict(left, verdict.used)

    def _verdict(self, sequence: Sequence, truth: Record, ours: Record) -> Verdict:
        judgement = (same if self.other.kind.is_runc else judge)(sequence, truth, ours)
        return Verdict(judgement.left, frozenset(judgement.used))

    async def _other_truths(self, sequence: Sequence) -> AsyncIterator[Record]:
        for _ in range(AGAIN):
            yield await self.runc.replay(sequence)
        for orders in itertools.islice(_orders(sequence), ORDERS):
            yield await self.runc.replay(sequence, orders)

    async def shrink(self, sequence: Sequence, wanted: Difference) -> Sequence:
        """Drop whatever can go while the same kind of difference stays."""
        tries = SHRINKS
        steps = list(sequence.steps)
        index = len(steps) - 1
        while index >= 0 and tries:
            shorter = sequence.with_steps(annotate(steps[:index] + steps[index + 1 :]))
            tries -= 1
            verdict = await self.judge(shorter)
            if any(difference.kind == wanted.kind for difference in verdict.differences):
                steps.pop(index)
            index -= 1
        return sequence.with_steps(annotate(steps))


@asynccontextmanager
async def pair(runc: Kind, other: Kind) -> AsyncIterator[Pair]:
    made = Pair(runc, other)
    try:
        yield made
    finally:
        try:
            await made.other.close()
        finally:
            await made.runc.close()


# --- concurrency -----------------------------------------------------------------------------------------------------


def _concurrent(sequence: Sequence) -> bool:
    return any(len(step.calls) > 1 for step in sequence.steps)


def _orders(sequence: Sequence) -> Iterator[Orders]:
    """Every way to issue the calls of the steps one by one."""
    several = [number for number, step in enumerate(sequence.steps) if len(step.calls) > 1]
    ways = [itertools.permutations(range(len(sequence.steps[number].calls))) for number in several]
    for chosen in itertools.product(*ways):
        yield dict(zip(several, chosen, strict=True))
