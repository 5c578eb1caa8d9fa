"""What runc's shim is expected to do, as far as a sequence must know it: which exits and which readiness to wait for.

Not an oracle: nothing is compared with it. Where it is wrong, a step waits in vain or too little, and runc compared with itself
shows it. Only RPCs that change something are here.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from integration.differential.steps import Call, Program, Rpc, Step


class Stage(Enum):
    ABSENT = "absent"
    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    DELETED = "deleted"


LIVE: Final = frozenset({Stage.CREATED, Stage.RUNNING, Stage.PAUSED})
SIGHUP, SIGKILL, SIGUSR1, SIGTERM, SIGCONT, SIGWINCH = 1, 9, 10, 15, 18, 28
#: Those of the signals in use that end a process without a handler. SIGINT is not in use, because sh -c catches it for a while.
FATAL: Final = frozenset({SIGHUP, SIGKILL, SIGUSR1, SIGTERM})
#: Those that end runc's own init, which waits for Start in the container's stead.
FATAL_BEFORE_START: Final = FATAL - {SIGUSR1}
#: Programs that say ``up``.
SPEAKING: Final = frozenset({Program.SLEEP, Program.TRAP, Program.CAT})
#: What is wrong with an exec that runc sees only when it starts it.
FOUND_AT_START: Final = frozenset({"no-args", "relative-cwd", "bad-stdio"})
SHORT: Final = frozenset({Program.EXIT, Program.ORPHAN})


@dataclass(slots=True)
class Process:
    """One process as runc has it. ``ending``: something is under way that ends it once it can run."""

    target: str
    program: Program
    stage: Stage = Stage.CREATED
    stdin: bool = False
    terminal: bool = False
    ending: bool = False
    #: A Start of it has failed.
    failed: bool = False

    @property
    def is_init(self) -> bool:
        return "/" not in self.target

    def dies_of(self, signal: int) -> bool:
        """Whether the signal ends it, now or once it is resumed."""
        if signal == SIGKILL:
            return True
        if self.stage is Stage.CREATED:
            return signal in FATAL_BEFORE_START
        if self.program is Program.TRAP and signal == SIGTERM:
            return True
        return not self.is_init and signal in FATAL


@dataclass(slots=True)
class Container:
    """An init and its execs."""

    init: Process
    execs: dict[str, Process] = field(default_factory=dict)

    def running_execs(self) -> list[Process]:
        return [process for process in self.execs.values() if process.stage is Stage.RUNNING]


class Model:
    """Every container of a sequence."""

    def __init__(self) -> None:
        self.containers: dict[str, Container] = {}

    def process(self, target: str) -> Process | None:
        """The process of that name unless there is none, or none any more."""
        container, _, exec_id = target.partition("/")
        found = self.containers.get(container)
        if found is None or not exec_id:
            return found.init if found else None
        return found.execs.get(exec_id)

    def stage(self, target: str) -> Stage:
        found = self.process(target)
        return found.stage if found else Stage.ABSENT

    def take(self, calls: tuple[Call, ...]) -> Step:
        """The step that issues these calls, with what to wait for; the model has taken it."""
        until: list[str] = []
        for call in calls:
            until += _EFFECTS[call.rpc](self, call) if call.rpc in _EFFECTS else []
        return Step(calls, tuple(dict.fromkeys(until)))

    def _create(self, call: Call) -> list[str]:
        if call.container not in self.containers and not call.flaw and call.program is not Program.MISSING:
            assert call.program is not None
            init = Process(call.container, call.program, stdin=call.stdin, terminal=call.terminal)
            self.containers[call.container] = Container(init)
        return []

    def _exec(self, call: Call) -> list[str]:
        container = self.containers.get(call.container)
        if (
            container is None
            or call.process in container.execs
            or container.init.stage not in (Stage.CREATED, Stage.RUNNING)
        ):
            return []
        if call.program is not None and (not call.flaw or call.flaw in FOUND_AT_START):
            program = Program.MISSING if call.flaw else call.program
            made = Process(call.target, program, stdin=call.stdin, terminal=call.terminal)
            container.execs[call.process] = made
        return []

    def _start(self, call: Call) -> list[str]:
        process = self.process(call.target)
        if process is None or process.stage is not Stage.CREATED:
            return []
        if process.program is Program.MISSING:
            process.failed = True
            return []
        container = self.containers[call.container]
        if not process.is_init and container.init.stage is not Stage.RUNNING:
            return []
        process.stage = Stage.RUNNING
        if process.program in SHORT or process.ending:
            return self._exits(process)
        return [f"up {process.target}"]

    def _kill(self, call: Call) -> list[str]:
        process = self.process(call.target)
        if process is None or process.stage not in LIVE or (not process.is_init and process.stage is Stage.CREATED):
            return []
        hit = [process]
        if call.everyone and process.is_init and process.stage is not Stage.CREATED:
            hit = [*self.containers[call.container].running_execs(), process]
        return [wanted for one in hit for wanted in self._signalled(one, call.signal)]

    def _signalled(self, process: Process, signal: int) -> list[str]:
        if not process.dies_of(signal) or process.stage is Stage.STOPPED:
            return []
        if self._frozen(process) and not (process.is_init and signal == SIGKILL):
            process.ending = True
            return []
        return self._exits(process)

    def _frozen(self, process: Process) -> bool:
        return self.stage(process.target.partition("/")[0]) is Stage.PAUSED

    def _exits(self, process: Process) -> list[str]:
        """It ends; with init everything in its pid namespace does."""
        process.stage = Stage.STOPPED
        if not process.is_init:
            return [f"exit {process.target}"]
        execs = [wanted for one in self.containers[process.target].running_execs() for wanted in self._exits(one)]
        return [*execs, f"exit {process.target}"]

    def _pause(self, call: Call) -> list[str]:
        if self.stage(call.container) is Stage.RUNNING:
            self.containers[call.container].init.stage = Stage.PAUSED
        return []

    def _resume(self, call: Call) -> list[str]:
        if self.stage(call.container) is not Stage.PAUSED:
            return []
        container = self.containers[call.container]
        container.init.stage = Stage.RUNNING
        ending = [process for process in [*container.running_execs(), container.init] if process.ending]
        return [wanted for process in ending for wanted in self._exits(process)]

    def _close_io(self, call: Call) -> list[str]:
        process = self.process(call.target)
        if process is None or not process.stdin or process.program is not Program.CAT or process.stage not in LIVE:
            return []
        if process.stage is not Stage.RUNNING or self._frozen(process):
            process.ending = True
            return []
        return self._exits(process)

    def _delete(self, call: Call) -> list[str]:
        process = self.process(call.target)
        if process is not None and process.stage in (Stage.CREATED, Stage.STOPPED):
            process.stage = Stage.DELETED
            if not process.is_init:
                del self.containers[call.container].execs[call.process]
        return []

    def _end(self, call: Call) -> list[str]:
        if found := self.containers.get(call.container):
            found.init.stage = Stage.DELETED
            found.execs.clear()
        return []


_EFFECTS: Final = {
    Rpc.CREATE: Model._create,
    Rpc.EXEC: Model._exec,
    Rpc.START: Model._start,
    Rpc.KILL: Model._kill,
    Rpc.PAUSE: Model._pause,
    Rpc.RESUME: Model._resume,
    Rpc.CLOSE_IO: Model._close_io,
    Rpc.DELETE: Model._delete,
    Rpc.END: Model._end,
}


def annotate(steps: Iterable[Step]) -> tuple[Step, ...]:
    """The same steps with what to wait for worked out anew, as needed when some have gone."""
    model = Model()
    return tuple(step if step.open else model.take(step.calls) for step in steps)
