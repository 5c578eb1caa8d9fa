"""The table: what the agent of a running container does from some moment on, and what is to be seen of it. Data only."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from integration.harness.scale import SCALE
from integration.hostile.agent.guest import Answer, Attack, attacks, babble, payload
from integration.hostile.vm.channel import Plan
from kata_shimd.api import agent as pb
from kata_shimd.pod.values import LOST

#: Seconds; more than any deadline of `chaos.stage.TIMEOUTS` together with what follows it.
TOO_LATE: Final = 120.0 * SCALE


class Extent(StrEnum):
    """Which calls are attacked. What the health check would end by itself is left for Kill to end when that is spared."""

    ALL = "every call"
    UNSEEN = "every call but the health check"
    SOME = "the calls named"


@dataclass(frozen=True, slots=True)
class Row:
    """``exit``: statuses that the container's client may be told. ``why``: rules by which ``kata-shimd why`` may name the cause.

    ``kill``: it does not end by itself. ``silent``: the container's output goes nowhere, so that the daemon takes all there is.
    """

    name: str
    extent: Extent
    plan: Plan
    exit: frozenset[int]
    why: frozenset[str]
    kill: bool
    silent: bool = False


#: The guest does not say how the container ended, or nobody believes it.
_UNTOLD: Final = frozenset({"exit-unknown"})
#: Its SIGKILL is not carried out, and the VM is ended.
_ESCALATED: Final = frozenset({"kill-escalated"})
_LOST: Final = frozenset({"agent-lost"})
#: By chance, or because what it says is no lie.
_BELIEVED: Final = frozenset({"ended-well", "container-exited"})

#: Attacks that answer the wait for the container's end with a refusal: the container has ended, as far as anybody can tell.
_REFUSES: Final = frozenset(
    {
        "garbage for an envelope",
        "garbage for a message",
        "more fields than are taken",
        "text of four megabytes",
        "text that drives a terminal",
        "a code nobody knows",
        "not found",
        "a frame too large",
        "data for an answer",
        "a request for an answer",
    }
)


def _why(name: str, attack: Attack, extent: Extent) -> frozenset[str]:
    if attack.exit == 0:
        return _BELIEVED
    if name in _REFUSES:
        return _UNTOLD
    if name == "strays without end" and extent is Extent.UNSEEN:
        return _LOST | _ESCALATED  # Kill may be under way when the connection is given up for them
    return _LOST if extent is Extent.ALL else _ESCALATED


def _general() -> Iterator[Row]:
    for extent, spared in ((Extent.ALL, ()), (Extent.UNSEEN, ("Check",))):
        for name, attack in attacks(TOO_LATE).items():
            plan = Plan({}, attack.answer, frozenset(spared))
            yield Row(
                name, extent, plan, frozenset({attack.exit}), _why(name, attack, extent), kill=extent is Extent.UNSEEN
            )


_END_OF_OUTPUT: Final[Mapping[str, Answer]] = {"ReadStdout": payload(b""), "ReadStderr": payload(b"")}
_ENDLESS: Final = payload(pb.ReadStreamResponse(data=b"x" * (200 << 10)))


def _some(name: str, answers: Mapping[str, Answer], exit_: int, why: frozenset[str], **how: bool) -> Row:
    return Row(name, Extent.SOME, Plan(answers), frozenset({exit_}), why, **{"kill": False, **how})


def _special() -> Iterator[Row]:
    for said in (256, -1, 2**31 - 1):
        ends = {**_END_OF_OUTPUT, "WaitProcess": payload(pb.WaitProcessResponse(status=said))}
        yield _some(f"exit status {said}", ends, LOST, _UNTOLD)
    endless = {"ReadStdout": _ENDLESS, "ReadStderr": _ENDLESS}
    yield _some("output without end, thrown away", endless, LOST, _ESCALATED, kill=True, silent=True)
    # Its reader has stalled, so the guest is asked for the status all the same, and tells the truth.
    yield _some("output without end, not read", endless, 137, frozenset({"container-exited"}), kill=True)
    memory = {"GetOOMEvent": payload(pb.OomEvent(container_id="../../c"))}
    yield _some("memory events without end", memory, 137, frozenset({"container-exited"}), kill=True)


def _random() -> Iterator[Row]:
    """By chance it may say that the container has ended well."""
    for seed in range(5):
        plan = Plan({}, babble(seed))
        why = _UNTOLD | _LOST | _ESCALATED | _BELIEVED
        yield Row(f"random frames, seed {seed}", Extent.ALL, plan, frozenset({0, LOST}), why, kill=True)


ROWS: Final = (*_general(), *_special(), *_random())
