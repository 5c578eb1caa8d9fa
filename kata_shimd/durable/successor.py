"""Lets another installation's daemon go on in this one's place.

It is tried twice. First beside us, as a command that says what it can read: one that cannot even start, or does not know this pod's
formats, costs nothing. Then in our place, where the keeper begins our like again if it dies, or does not settle in time. Must never
happen: a pod that is lost, or a request of containerd's that fails, because what came next was no good.
"""

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, Protocol

from kata_shimd.durable import formats
from kata_shimd.durable.keeper import Keeper
from kata_shimd.durable.store import Store
from kata_shimd.errors import FailedPrecondition, InvalidArgument

#: A daemon has settled within so many seconds, or never does.
PATIENCE: Final = range(1, 3601)

#: Where nobody is begun ahead: our answer is on its way, and if it is not, the next daemon answers.
_ANSWER_SECONDS: Final = 0.05
_STAYS: Final = "this pod stays with the version it has"

#: ``ask(argv)``: what a daemon's command says of itself when it is run with ``--check``: its exit status and its last words.
Ask = Callable[[list[str]], Awaitable[tuple[int, str]]]


class Begun(Protocol):
    """What a daemon was begun with; ``argv`` is the command line of one of another installation for the same pod."""

    @property
    def launcher(self) -> Path: ...

    def argv(self, python: str, launcher: str) -> list[str]: ...


class Successor:
    """``ours`` is what this daemon was begun with; ``note`` writes to the journal; ``stops``: whether the pod is ending."""

    def __init__(
        self, ours: Begun, keeper: Keeper, store: Store, ask: Ask, note: Callable[..., None], stops: Callable[[], bool]
    ) -> None:
        self._ours, self._keeper, self._store, self._ask, self._note = ours, keeper, store, ask, note
        self._stops = stops
        self._leaving = False

    async def go_on(self, python: str, launcher: str, patience: int) -> str:
        """Returns the version that comes, once it is sure that it begins; we end right afterwards.

        :raises InvalidArgument: these are no programs
        :raises FailedPrecondition: it does not start, or cannot go on with this pod; we stay
        """
        argv = self._checked(python, launcher, patience)
        begun = time.monotonic()
        status, words = await self._ask(argv)
        last = words.rpartition("\n")[2]
        if status != 0:
            cause = f"the new daemon does not start: {last or f'it ended with status {status}'}"
            raise FailedPrecondition(formats.STEP, python, cause, hint=_STAYS)
        theirs = formats.heard(last, python)
        if not (self._keeper.begins_ahead or theirs.in_unit):
            cause = "it cannot be tried in a pod that is a unit of systemd's"
            raise FailedPrecondition(formats.STEP, theirs.version, cause, hint=_STAYS)
        if (launcher, theirs.version) == (str(self._ours.launcher), formats.OURS.version):
            return theirs.version  # asked for again, after it was us who came
        self._store.rewrite(formats.common(theirs, self._store.version))
        self._keeper.next_is(argv, patience)
        self._note("upgrade", version=theirs.version, python=python)
        self._leave(time.monotonic() - begun if self._keeper.begins_ahead else _ANSWER_SECONDS)
        return theirs.version

    def _checked(self, python: str, launcher: str, patience: int) -> list[str]:
        for program in (python, launcher):
            if not Path(program).is_absolute() or not os.access(program, os.X_OK):
                raise InvalidArgument(formats.STEP, program, "it is no program, or its path is not absolute")
        if patience not in PATIENCE:
            raise InvalidArgument(formats.STEP, f"{patience} s", f"want {PATIENCE[0]} to {PATIENCE[-1]} seconds")
        if self._leaving:
            raise FailedPrecondition(formats.STEP, python, "another version is about to take over")
        return self._ours.argv(python, launcher)

    def _leave(self, seconds: float) -> None:
        """As a daemon dies that is killed; what that loses, nothing, is tested. Not before the next one, begun meanwhile, is likely
        to have imported what it needs, which makes the gap short and nothing else."""
        self._leaving = True
        asyncio.get_running_loop().call_later(seconds, self._go)

    def _go(self) -> None:
        """Nobody comes after the daemon of a pod that ends, which has its last events to tell and its own end to come to."""
        if not self._stops():
            os.kill(os.getpid(), signal.SIGKILL)
