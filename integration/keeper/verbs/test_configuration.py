"""A running pod stays what it was configured to be, whatever becomes of the node's files and whoever signals its daemons."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from integration.harness.waiting import eventually
from integration.keeper.verbs.client import PATIENCE, Caller
from integration.keeper.verbs.stage import Stage
from integration.keeper.verbs.test_ends import finish, is_other, kill, run, state

__all__ = ["run"]


def turned_off(path: Path) -> None:
    path.write_text(path.read_text().replace('keeper = "launcher"', 'keeper = "off"'))


def spoilt(path: Path) -> None:
    path.write_text("[shimd\nkeeper = ")


@pytest.mark.parametrize("change", [turned_off, spoilt, Path.unlink])
def test_files_that_have_changed_concern_pods_to_come(stage: Stage, run, change) -> None:
    async def body(caller: Caller, ended: "asyncio.Task[int]") -> None:
        change(stage.root / "configuration.toml")
        for _ in range(2):
            await kill(stage, "daemon")
            assert await state(caller) == 2
        stage.guest.finish("pod", 6)
        assert await ended == 6
        await finish(stage, caller)

    run(body)
    assert stage.guest.sessions == 1


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_of_somebody_who_looks_is_harmless_from_the_first_moment(stage: Stage, run, number: int) -> None:
    async def body(caller: Caller, ended: "asyncio.Task[int]") -> None:
        old = stage.pod.process("daemon")
        old.kill()
        await asyncio.to_thread(eventually, "another daemon", lambda: is_other(stage, "daemon", old), within=PATIENCE)
        os.kill(stage.pod.process("daemon").pid, number)  # it is on record before it has so much as begun Python
        assert await state(caller) == 2
        os.kill(stage.pod.process("daemon").pid, number)
        assert await state(caller) == 2
        assert stage.deaths() == 1
        stage.guest.finish("pod", 6)
        assert await ended == 6
        await finish(stage, caller)

    run(body)
