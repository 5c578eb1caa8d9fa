"""What a row of `intended` says: an `Answer` of one reply, a `Life` of what becomes of a process or container from a call on.

Everything that is not in ``when`` may be anything; a fact that is not there reads ``no``. What is not pinned here is not meant.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from integration.differential.compare import Difference, Facts
from integration.differential.steps import Call

When = Mapping[str, tuple[str, ...]]


def holds(when: When, facts: Facts) -> bool:
    return all(facts.get(name, "no") in values for name, values in when.items())


ANY_CODE: Final = ("any code", "any code")
#: Stands for the own id of the exec that is told of.
ITS_ID: Final = "(its id)"


@dataclass(frozen=True, slots=True)
class Answer:
    """``aspect``: as in `Difference`. ``runc`` and ``ours``: the values that may stand there."""

    name: str
    rpcs: tuple[str, ...]
    when: When
    runc: tuple[str, ...]
    ours: tuple[str, ...]
    reason: str
    situation: str
    aspect: str = "code"
    #: What the two say, for the page, where it is no code.
    words: tuple[str, str] = ANY_CODE

    def covers(self, difference: Difference) -> bool:
        return (
            difference.facts["rpc"] in self.rpcs
            and difference.aspect == self.aspect
            and difference.runc in _meant(self.runc, difference)
            and difference.ours in _meant(self.ours, difference)
            and holds(self.when, difference.facts)
        )


def _meant(values: tuple[str, ...], difference: Difference) -> list[str]:
    container, _, exec_id = difference.target.partition("/")
    its_id = container if exec_id == "@" else exec_id
    return [its_id if value == ITS_ID else value for value in values]


class Scope(Enum):
    """Who lives differently from a call on."""

    PROCESS = "process"
    CONTAINER = "container"
    POD = "pod"

    def target(self, call: Call) -> str:
        """The name under which the records are parted: of a process, of a container, or empty for everything."""
        return {Scope.PROCESS: call.target, Scope.CONTAINER: call.container, Scope.POD: ""}[self]


@dataclass(frozen=True, slots=True)
class Turn:
    """What one shim makes of the call. ``words``: for the page.

    ``code``: what it answers. ``ends``: by signal, the exit status with which an answer of OK ends the process. ``state``: what
    State tells of the process afterwards unless that ended it, ``absent`` for NOT_FOUND; empty: the same as before.
    """

    words: str
    code: str
    ends: Mapping[str, int] = field(default_factory=dict)
    state: str = ""

    def status(self, call: Call) -> int | None:
        """The exit status with which the call ends its process; ``None`` where it goes on."""
        return self.ends.get(str(call.signal))


@dataclass(frozen=True, slots=True)
class Life:
    """From this call on ``scope`` lives differently, and is compared no more; what both must make of the call is pinned."""

    name: str
    rpcs: tuple[str, ...]
    when: When
    runc: Turn
    ours: Turn
    reason: str
    situation: str
    scope: Scope = Scope.PROCESS

    def begins(self, facts: Facts) -> bool:
        return facts["rpc"] in self.rpcs and holds(self.when, facts)
