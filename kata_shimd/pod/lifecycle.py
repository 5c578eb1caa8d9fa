"""Every legal step of a process's life. What is not in a table is FailedPrecondition.

``docs/state-machines.md`` is generated from these tables. A verb is *check* (look-up, no await), *do* (await the guest), *commit*
(take the step and emit the event, no await). Everything that changes a state goes through `Life.commit`.
"""

from collections.abc import Mapping
from enum import Enum
from typing import Final

from kata_shimd.errors import FailedPrecondition, NotFound


class State(Enum):
    """The values are containerd's task status numbers, except DELETED, which containerd never sees."""

    CREATED = 1
    RUNNING = 2
    STOPPED = 3
    PAUSED = 4
    DELETED = 0


class Do(Enum):
    START = "start"
    PAUSE = "pause"
    RESUME = "resume"
    EXIT = "exit"
    DELETE = "delete"


Table = Mapping[tuple[State, Do], State]

#: A container's init process.
INIT: Final[Table] = {
    (State.CREATED, Do.START): State.RUNNING,
    (State.CREATED, Do.EXIT): State.STOPPED,
    (State.CREATED, Do.DELETE): State.DELETED,
    (State.RUNNING, Do.PAUSE): State.PAUSED,
    (State.RUNNING, Do.EXIT): State.STOPPED,
    (State.PAUSED, Do.RESUME): State.RUNNING,
    (State.PAUSED, Do.EXIT): State.STOPPED,
    (State.STOPPED, Do.DELETE): State.DELETED,
}

#: A process added by Exec: the same life without pause.
EXEC: Final[Table] = {pair: to for pair, to in INIT.items() if State.PAUSED not in (pair[0], to)}

#: States in which the process has ended.
ENDED: Final = frozenset({State.STOPPED, State.DELETED})


class Life:
    """The state of one process, moved only along its table."""

    __slots__ = ("_table", "name", "state")

    def __init__(self, name: str, table: Table) -> None:
        self.name = name
        self.state = State.CREATED
        self._table = table

    def check(self, do: Do) -> None:
        """:raises FailedPrecondition: the table has no such step from here
        :raises NotFound: there are no steps any more
        """
        if self.state is State.DELETED:
            raise NotFound(do.value, self.name, "it has been deleted")
        if (self.state, do) not in self._table:
            raise FailedPrecondition(do.value, self.name, f"it is {self.state.name.lower()}")

    def commit(self, do: Do) -> None:
        self.check(do)
        self.state = self._table[self.state, do]

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    def check_alive(self, verb: str) -> None:
        """For verbs that are permissions and not steps (kill, update, resize).

        :raises NotFound: it has ended; clients take NotFound for "already gone" (`containerd.md` §6.1)
        """
        if self.ended:
            raise NotFound(verb, self.name, "process has already ended")
