"""Plays one cell: a container at its moment, a death, and a judgement of everything that is seen afterwards."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

from integration.chaos import victims
from integration.chaos.matrix import CELLS, Expected
from integration.chaos.moments import REACH, Moment, Play, await_lines
from integration.chaos.probe import overdue
from integration.chaos.stage import LoggerHold, Stage
from integration.chaos.victims import KILL, Victim
from integration.harness import leaks
from integration.harness.ctr import PATIENCE
from integration.harness.waiting import TooLate, eventually
from kata_shimd.debug.verdict import Verdict
from kata_shimd.errors import DeadlineExceeded, ShimError

#: Let undo die right after its first record, wherever it is run.
_UNDO_DIES: Final = "undo:1"
#: Killed when they appear, which is after `start` was let go.
_LATER: Final = frozenset({Victim.DAEMON, Victim.QEMU, Victim.VIRTIOFSD, Victim.LAUNCHER, Victim.DELETE})


@dataclass(frozen=True, slots=True)
class Result:
    """What was seen. ``code`` and ``said``: the client's end; ``rule``, ``sentence``: of ``why``; ``complaints``: empty is good."""

    victim: Victim
    moment: Moment
    code: int
    said: str
    rule: str
    sentence: str
    seconds: float
    complaints: tuple[str, ...]


def play(stage: Stage, scene: leaks.Scene, victim: Victim, moment: Moment, name: str) -> Result:
    """One cell from beginning to end; containerd runs afterwards as it did before.

    :raises KeyError: no cell of this victim and moment can be played
    """
    expected = CELLS[victim, moment]
    if not isinstance(expected, Expected):
        raise KeyError(f"{victim} at {moment}: {expected.because}")
    before, begin = leaks.snapshot(scene), time.monotonic()
    with _undo(stage, victim), _reached(stage, moment, name) as at:
        _strike(at, victim, moment)
        complaints = [*_states(at)]
        code, said = at.finish()
        complaints += [*_client(expected, code, said), *_states(at)]
        if expected.survives:
            verdict = stage.verdict(at.sandbox_id)
            complaints += [*_survived(at, moment), *_ends(at)]
        else:
            complaints += _ends(at)
            verdict = _dead(at)
        if verdict.rule not in expected.why:
            complaints.append(f"why says {verdict.rule}, not {'/'.join(sorted(expected.why))}")
    complaints += overdue(stage.pod(at.sandbox_id).journal())
    stage.remove(*at.ids)
    if not expected.leaves:
        complaints += _left(scene, before, "it")
    complaints += [*_again(stage, name), *_left(scene, before, "the retry")]
    took = time.monotonic() - begin
    return Result(victim, moment, code, said, verdict.rule, verdict.sentence, took, tuple(complaints))


@contextmanager
def _undo(stage: Stage, victim: Victim) -> Iterator[None]:
    """containerd's launchers, and so the daemons, have an undo that dies; then it starts again, and its next `delete` finishes."""
    if victim is not Victim.DELETE:
        yield
        return
    stage.restart(KATA_SHIMD_DIE_AT=_UNDO_DIES)
    try:
        yield
    finally:
        stage.restart()


@contextmanager
def _reached(stage: Stage, moment: Moment, name: str) -> Iterator[Play]:
    at = REACH[moment](stage, name)
    try:
        yield at
    finally:
        at.close()


def _strike(at: Play, victim: Victim, moment: Moment) -> None:
    if moment is Moment.START and victim in _LATER:
        at.let_go()
    if victim is Victim.DELETE:
        # Delete runs undo by itself; at any other moment it is `delete` that does, for a dead daemon.
        if moment is not Moment.DELETE:
            victims.daemon(at.stage, at.sandbox_id)
        return
    KILL[victim](at.stage, at.sandbox_id)


def _states(at: Play) -> Iterator[str]:
    """State of every container, as long as there is a daemon to ask: soon, and with a status that is not 0."""
    for container_id in at.ids:
        try:
            state = at.stage.shim(at.sandbox_id).state(container_id)
        except (AssertionError, TimeoutError, DeadlineExceeded) as error:
            yield f"State of {container_id}: {error or 'no answer'}"
        except (OSError, ShimError):
            continue  # no daemon, or none that knows it
        else:
            if state.exited_at is not None and state.exit_status == 0:
                yield f"State tells exit status 0 of {container_id}"


def _client(expected: Expected, code: int, said: str) -> Iterator[str]:
    if code not in expected.client:
        yield f"the client ended with {code}, not {sorted(expected.client)}: {said}"
    if not re.search(expected.says, said):
        yield f"the client said {said!r}"


def _survived(at: Play, moment: Moment) -> Iterator[str]:
    """The pod's first container runs, what it writes arrives, and Kill works on everything."""
    if at.stage.ctr.tasks().get(at.sandbox_id, (0, "gone"))[1] != "RUNNING":
        yield f"{at.sandbox_id} does not run any more"
    if moment is Moment.RUNNING and isinstance(at.hold, LoggerHold):
        await_lines(at.hold, at.hold.output.count("\n") + 10)
    for container_id in at.ids:
        at.stage.ctr.kill(container_id)


def _ends(at: Play) -> Iterator[str]:
    """Every container, lost or killed, ends, and is not said to have ended with 0."""
    for container_id in at.ids:
        try:
            eventually(f"{container_id} ended", partial(_stopped, at.stage, container_id), within=PATIENCE)
        except TooLate as error:
            yield str(error)
        if at.stage.exit_status(container_id) == 0:
            yield f"{container_id} is said to have ended with 0"


def _stopped(stage: Stage, container_id: str) -> bool:
    return stage.ctr.tasks().get(container_id, (0, "STOPPED"))[1] == "STOPPED"


def _dead(at: Play) -> Verdict:
    """The verdict is final when the daemon has ended."""
    eventually(f"the end of {at.sandbox_id}", lambda: not at.stage.daemon_lives(at.sandbox_id), within=PATIENCE)
    return at.stage.verdict(at.sandbox_id)


def _left(scene: leaks.Scene, before: leaks.Snapshot, what: str) -> Iterator[str]:
    if leaked := leaks.await_no_leak(scene, before):
        yield f"{what} left: {leaks.report(leaked)}"


def _again(stage: Stage, name: str) -> Iterator[str]:
    """The same id runs again, which is the retry that an operator makes."""
    done = stage.ctr.run(name, "echo", "again")
    if (done.code, done.out) != (0, "again"):
        yield f"the retry ended with {done.code}: {done.err}"
    stage.remove(name)
