"""A short choice of the matrix; ``python -m integration.chaos --all`` plays all of it (docs/failures.md)."""

import re
from itertools import product
from typing import Final

import pytest

from integration.chaos.matrix import CELLS, Expected, Senseless
from integration.chaos.moments import Moment
from integration.chaos.play import play
from integration.chaos.stage import Stage
from integration.chaos.victims import Victim
from integration.harness.leaks import Scene

#: One cell of each row that no other test of the project plays, and each moment once.
CHOSEN: Final = (
    (Victim.LAUNCHER, Moment.START),
    (Victim.CONTAINERD, Moment.CREATE),
    (Victim.AGENT, Moment.RUNNING),
    (Victim.QEMU, Moment.EXEC),
    (Victim.DAEMON, Moment.DELETE),
)


def test_every_cell_has_an_expectation_or_a_reason() -> None:
    assert set(CELLS) == set(product(Victim, Moment))
    assert all(cell.why if isinstance(cell, Expected) else cell.because for cell in CELLS.values())


def test_nobody_may_be_told_0() -> None:
    """ctr's own 0 is allowed where it says the container's status beside it."""
    cells = [cell for cell in CELLS.values() if isinstance(cell, Expected)]
    assert not [cell for cell in cells if 0 in cell.client and not re.fullmatch("exit code [1-9]", cell.says)]


@pytest.mark.vm
@pytest.mark.parametrize(("victim", "moment"), CHOSEN)
def test_cell(stage: Stage, scene: Scene, name: str, victim: Victim, moment: Moment) -> None:
    assert not isinstance(CELLS[victim, moment], Senseless)
    result = play(stage, scene, victim, moment, name)
    assert result.complaints == (), result
