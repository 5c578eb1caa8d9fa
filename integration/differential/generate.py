"""Random sequences from a seed. The same seed gives the same sequence for ever, as long as this file stays as it is.

A step is drawn from `ACTIONS` by weight; an action that has nothing to act on is drawn again. About every fifth call makes no
sense where it stands, which is meant.
"""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from integration.differential.bundle import CREATE_FLAWS, EXEC_FLAWS, UPDATE_FLAWS
from integration.differential.model import (
    LIVE,
    SIGCONT,
    SIGHUP,
    SIGKILL,
    SIGTERM,
    SIGUSR1,
    SIGWINCH,
    Model,
    Stage,
)
from integration.differential.steps import Call, Program, Rpc, Sequence, Step

CONTAINERS: Final = ("c0", "c1")
EXECS: Final = ("e0", "e1", "e2")
SIGNALS: Final = (
    SIGKILL,
    SIGKILL,
    SIGKILL,
    SIGTERM,
    SIGTERM,
    SIGHUP,
    SIGUSR1,
    SIGCONT,
    SIGWINCH,
    0,
    65,
    4294967295,
)
#: Ids that no container has, some of them malformed.
STRANGERS: Final = ("=nobody", "=", "=../etc")
#: Left out, and cases of their own: what runc's shim dies of, and a checkpoint, of which runc makes what cannot be started.
CREATED_WRONG: Final = sorted(CREATE_FLAWS.keys() - {"checkpoint"})
ADDED_WRONG: Final = sorted(EXEC_FLAWS.keys() - {"no-spec"} | {"bad-stdio"})
UPDATED_WRONG: Final = sorted(UPDATE_FLAWS.keys() - {"no-resources"})
#: How many of the signals that part a container are left.
PARTING: Final = 0.1
PROGRAMS: Final = (Program.SLEEP, Program.SLEEP, Program.TRAP, Program.TRAP, Program.CAT, Program.EXIT)


class Draw:
    """One sequence in the making."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.model = Model()

    def container(self, *stages: Stage) -> str | None:
        found = [name for name in CONTAINERS if not stages or self.model.stage(name) in stages]
        return self.rng.choice(found) if found else None

    def target(self, *stages: Stage) -> tuple[str, str] | None:
        """Any process, of those in one of the stages if any are given."""
        all_of = [(name, exec_id) for name in CONTAINERS for exec_id in ("", *EXECS)]
        found = [pair for pair in all_of if not stages or self.model.stage("/".join(filter(None, pair))) in stages]
        return self.rng.choice(found) if found else None

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability


Action = Callable[[Draw], Call | None]


def _create(draw: Draw) -> Call | None:
    absent = draw.container(Stage.ABSENT)
    if absent is None:
        return None
    call = Call(Rpc.CREATE, absent, program=draw.rng.choice(PROGRAMS), terminal=draw.chance(0.15))
    if call.program is Program.CAT:
        call = replace(call, stdin=True, terminal=False)
    if draw.chance(0.06):
        return replace(call, program=Program.MISSING)
    return replace(call, flaw=draw.rng.choice(CREATED_WRONG)) if draw.chance(0.08) else call


def _create_again(draw: Draw) -> Call | None:
    used = draw.container(*LIVE, Stage.STOPPED)
    return Call(Rpc.CREATE, used, program=Program.SLEEP) if used else None


def _start(draw: Draw) -> Call | None:
    found = draw.target(Stage.CREATED)
    return Call(Rpc.START, *found) if found else None


def _exec(draw: Draw) -> Call | None:
    container = draw.container(Stage.RUNNING)
    if container is None:
        return None
    free = [exec_id for exec_id in EXECS if draw.model.stage(f"{container}/{exec_id}") is Stage.ABSENT]
    program = draw.rng.choice((*PROGRAMS, Program.MISSING))
    call = Call(Rpc.EXEC, container, draw.rng.choice(free or EXECS), program=program, terminal=draw.chance(0.15))
    if program is Program.CAT:
        call = replace(call, stdin=True, terminal=False)
    return replace(call, flaw=draw.rng.choice(ADDED_WRONG)) if draw.chance(0.05) else call


def _exec_odd(draw: Draw) -> Call | None:
    """In any state, or with an id that is used, reserved or malformed."""
    exec_id = draw.rng.choice(("e0", "e1", "@", "=", "=../x", "=" + "y" * 200))
    return Call(Rpc.EXEC, draw.rng.choice(CONTAINERS), exec_id, program=Program.SLEEP)


def _signal(draw: Draw, container: str, process: str) -> int:
    """Any; but one after which nothing more of a container can be compared is mostly drawn again, as a waste of what follows."""
    while True:
        signal = draw.rng.choice(SIGNALS)
        if not parts(draw.model, Call(Rpc.KILL, container, process, signal=signal)) or draw.chance(PARTING):
            return signal


def parts(model: Model, call: Call) -> bool:
    """Whether it makes an init live differently in a VM: what `intended` has as lives of a container."""
    init = model.process(call.target)
    if call.rpc is not Rpc.KILL or init is None or not init.is_init:
        return False
    if init.stage is Stage.CREATED:
        return call.signal in (SIGHUP, SIGTERM)
    return init.stage in LIVE and init.program is not Program.TRAP and call.signal == SIGTERM


def _kill(draw: Draw) -> Call | None:
    found = draw.target(*LIVE)
    if found is None:
        return None
    signal = _signal(draw, *found)
    return Call(Rpc.KILL, *found, signal=signal, everyone=draw.chance(0.3))


def _delete(draw: Draw) -> Call | None:
    found = draw.target(Stage.STOPPED)
    return Call(Rpc.DELETE, *found) if found else None


def _pause(draw: Draw) -> Call | None:
    container = draw.container(Stage.RUNNING)
    return Call(Rpc.PAUSE, container) if container else None


def _resume(draw: Draw) -> Call | None:
    container = draw.container(Stage.PAUSED)
    return Call(Rpc.RESUME, container) if container else None


def _close_io(draw: Draw) -> Call | None:
    found = draw.target(*LIVE)
    process = draw.model.process("/".join(filter(None, found))) if found else None
    if process is None or found is None or (process.stdin and not process.is_init and process.stage is Stage.CREATED):
        return None  # what is sent to an exec before it has its streams is undefined
    return Call(Rpc.CLOSE_IO, *found)


def _wait(draw: Draw) -> Call | None:
    target = draw.target()
    return Call(Rpc.WAIT, *target, held=True) if target else None


def _wait_now(draw: Draw) -> Call | None:
    """Where it can be answered at once."""
    target = draw.target(Stage.STOPPED, Stage.DELETED, Stage.ABSENT)
    return Call(Rpc.WAIT, *target) if target else None


def _update(draw: Draw) -> Call | None:
    flaw = draw.rng.choice(UPDATED_WRONG) if draw.chance(0.3) else ""
    return Call(Rpc.UPDATE, draw.rng.choice(CONTAINERS), flaw=flaw)


def _any(draw: Draw) -> Call | None:
    """Something on anything, in whatever state it is."""
    rpc = draw.rng.choice(ANYWHERE)
    container, process = draw.target() or ("c0", "")
    if rpc in ON_PROCESS:
        return Call(rpc, container, process, signal=_signal(draw, container, process) if rpc is Rpc.KILL else 0)
    return Call(rpc, container)


def _stranger(draw: Draw) -> Call | None:
    rpc = draw.rng.choice((*ANYWHERE, Rpc.CREATE, Rpc.EXEC))
    container = draw.rng.choice(STRANGERS)
    if rpc is Rpc.CREATE:
        return Call(rpc, draw.rng.choice(STRANGERS[1:]), program=Program.SLEEP)
    if rpc is Rpc.EXEC:
        return Call(rpc, container, "e0", program=Program.SLEEP)
    return Call(rpc, container, signal=SIGTERM if rpc is Rpc.KILL else 0)


ON_PROCESS: Final = frozenset({Rpc.START, Rpc.DELETE, Rpc.KILL, Rpc.STATE, Rpc.RESIZE_PTY})
ANYWHERE: Final = (
    *(Rpc.START, Rpc.DELETE, Rpc.KILL, Rpc.STATE, Rpc.RESIZE_PTY),
    *(Rpc.PAUSE, Rpc.RESUME, Rpc.PIDS, Rpc.STATS, Rpc.CONNECT, Rpc.CHECKPOINT, Rpc.SHUTDOWN),
)
ACTIONS: Final[tuple[tuple[Action, int], ...]] = (
    (_create, 14),
    (_start, 22),
    (_exec, 14),
    (_kill, 16),
    (_delete, 8),
    (_pause, 4),
    (_resume, 8),
    (_close_io, 5),
    (_wait, 6),
    (_wait_now, 2),
    (_update, 3),
    (_any, 12),
    (_exec_odd, 3),
    (_create_again, 1),
    (_stranger, 2),
)
#: Safe to issue several times at once: whoever wins, the outcome is the same.
REPEATABLE: Final = frozenset(
    {Rpc.START, Rpc.KILL, Rpc.PAUSE, Rpc.RESUME, Rpc.EXEC, Rpc.WAIT, Rpc.STATE, Rpc.PIDS, Rpc.CONNECT, Rpc.CLOSE_IO}
)


def _one(draw: Draw) -> Call:
    while True:
        action = draw.rng.choices([action for action, _ in ACTIONS], [weight for _, weight in ACTIONS])[0]
        call = action(draw)
        if call is not None and _sensible(draw.model, call):
            return call


def _sensible(model: Model, call: Call) -> bool:
    """Leave out what no client can rely on and what makes even runc differ from run to run."""
    init = model.stage(call.container)
    process = model.process(call.target)
    if call.rpc is Rpc.START and call.process and init is not Stage.RUNNING and process is not None:
        return False  # runc hangs on a frozen cgroup, and starts it in a created container
    if call.rpc is Rpc.START and process is not None and process.failed:
        return False  # runc's shim dies of it
    # Whether the exit of a container that was never started is told at its Delete is a race.
    return call.rpc is not Rpc.DELETE or bool(call.process) or init is not Stage.CREATED


def _group(draw: Draw) -> tuple[Call, ...]:
    """Calls for one step."""
    call = _one(draw)
    if draw.chance(0.12) and call.rpc in REPEATABLE and not call.held:
        return (call,) * draw.rng.randint(2, 3)
    if draw.chance(0.15) and not call.container.startswith("="):
        other = _one(draw)
        if other.container != call.container and not other.container.startswith("="):
            return (call, other)
    return (call,)


#: Pairs whose outcome is open: each, and then the container is ended.
RACES: Final = (
    (Call(Rpc.KILL, signal=SIGKILL), Call(Rpc.DELETE)),
    (Call(Rpc.KILL, signal=SIGKILL), Call(Rpc.PAUSE)),
    (Call(Rpc.KILL, signal=SIGKILL), Call(Rpc.EXEC, process="e9", program=Program.SLEEP)),
    (Call(Rpc.PAUSE), Call(Rpc.RESUME)),
    (Call(Rpc.PAUSE), Call(Rpc.EXEC, process="e9", program=Program.SLEEP)),
    (Call(Rpc.KILL, signal=SIGKILL), Call(Rpc.STATS), Call(Rpc.PIDS)),
    (Call(Rpc.DELETE), Call(Rpc.DELETE)),
)


def _race(draw: Draw) -> list[Step]:
    container = draw.container(Stage.RUNNING, Stage.STOPPED)
    if container is None:
        return []
    calls = tuple(replace(call, container=container) for call in draw.rng.choice(RACES))
    return [Step(calls, open=True), draw.model.take((Call(Rpc.END, container),))]


def generate(seed: int) -> Sequence:
    """The sequence of this seed."""
    draw = Draw(seed)
    steps: list[Step] = []
    for _ in range(draw.rng.randint(8, 24)):
        if draw.chance(0.05):
            steps += _race(draw)
        else:
            steps.append(draw.model.take(_group(draw)))
    return Sequence(f"seed {seed}", tuple(steps))
