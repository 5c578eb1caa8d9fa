"""A short choice of the matrix; ``python -m integration.chaos --all`` plays all of it (docs/failures.md)."""

import re
from itertools import product
from typing import Final

import pytest

from integration.chaos import page
from integration.chaos.__main__ import PAGE
from integration.chaos.matrix import CELLS, Expected, Senseless
from integration.chaos.moments import Moment
from integration.chaos.play import Result, play
from integration.chaos.stage import Stage
from integration.chaos.victims import Victim
from integration.harness.leaks import Scene

#: Each moment once, and rows that no other test plays. Create is in `test_pains`; QEMU and virtiofsd in `test_crash`, `test_why`.
CHOSEN: Final = (
    (Victim.LAUNCHER, Moment.START),
    (Victim.AGENT, Moment.RUNNING),
    (Victim.CONTAINERD, Moment.EXEC),
    (Victim.DAEMON, Moment.DELETE),
)


def test_every_cell_has_an_expectation_or_a_reason() -> None:
    assert set(CELLS) == set(product(Victim, Moment))
    assert all(cell.why if isinstance(cell, Expected) else cell.because for cell in CELLS.values())


def test_nobody_may_be_told_0() -> None:
    """ctr's own 0 is allowed where it says the container's status beside it."""
    cells = [cell for cell in CELLS.values() if isinstance(cell, Expected)]
    assert not [cell for cell in cells if 0 in cell.client and not re.fullmatch("exit code [1-9]", cell.says)]


def test_the_committed_page_is_of_this_table_and_good() -> None:
    text = PAGE.read_text()
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == list(Victim)
    assert "FAILED" not in text and "not played" not in text


def test_a_cell_that_fails_is_seen_on_the_page() -> None:
    cell = (Victim.QEMU, Moment.CREATE)
    result = Result(*cell, code=1, said="a|b", rule="running", sentence="", seconds=1.0, complaints=("it left: much",))
    text = page.render({cell: result})
    assert "**FAILED**, 1 s" in text and "FAILED, create: it left: much" in text and "a\\|b" in text
    assert "0 of 1 cells" in text


@pytest.mark.vm
@pytest.mark.parametrize(("victim", "moment"), CHOSEN)
def test_cell(stage: Stage, scene: Scene, name: str, victim: Victim, moment: Moment) -> None:
    assert not isinstance(CELLS[victim, moment], Senseless)
    result = play(stage, scene, victim, moment, name)
    assert result.complaints == (), result
