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
from typing import Final

from kata_shimd.durable import formats
from kata_shimd.durable.keeper import Keeper
from kata_shimd.durable.store import Store
from kata_shimd.errors import FailedPrecondition, InvalidArgument

#: A daemon has settled within so many seconds, or never does.
PATIENCE: Final = range(1, 3601)

#: ``ask(argv)``: what a daemon's command says of itself when it is run with ``--check``: its exit status and its last words.
Ask = Callable[[list[str]], Awaitable[tuple[int, str]]]


class Successor:
    """``argv(python, launcher)`` is the command line of a daemon for this pod; ``note`` writes to the journal."""

    def __init__(
        self, keeper: Keeper, store: Store, argv: Callable[[str, str], list[str]], ask: Ask, note: Callable[..., None]
    ) -> None:
        self._keeper, self._store, self._argv, self._ask, self._note = keeper, store, argv, ask, note
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
            raise FailedPrecondition(formats.STEP, python, cause, hint="this pod stays with the version it has")
        theirs = formats.heard(last, python)
        self._store.rewrite(formats.common(theirs, self._store.version))
        self._keeper.next_is(argv, patience)
        self._note("upgrade", version=theirs.version, python=python)
        self._leave(time.monotonic() - begun)
        return theirs.version

    def _checked(self, python: str, launcher: str, patience: int) -> list[str]:
        for program in (python, launcher):
            if not Path(program).is_absolute() or not os.access(program, os.X_OK):
                raise InvalidArgument(formats.STEP, program, "it is no program, or its path is not absolute")
        if patience not in PATIENCE:
            raise InvalidArgument(formats.STEP, f"{patience} s", f"want {PATIENCE[0]} to {PATIENCE[-1]} seconds")
        if self._leaving:
            raise FailedPrecondition(formats.STEP, python, "another version is about to take over")
        return self._argv(python, launcher)

    def _leave(self, seconds: float) -> None:
        """As a daemon dies that is killed; what that loses, nothing, is tested. Not before the next one, begun meanwhile, is likely
        to have imported what it needs, which makes the gap short and nothing else."""
        self._leaving = True
        asyncio.get_running_loop().call_later(seconds, os.kill, os.getpid(), signal.SIGKILL)
