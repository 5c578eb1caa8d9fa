"""A short choice of the attacks; ``python -m integration.hostile.vm`` plays all of them (docs/hostile.md)."""

from typing import Final

import pytest

from integration.chaos.stage import Stage
from integration.harness.leaks import Scene
from integration.hostile.agent.guest import ATTACKS
from integration.hostile.vm import page
from integration.hostile.vm.attacks import ROWS, Extent, Row
from integration.hostile.vm.play import play

#: Too slowly, too much, garbage, and output without end.
CHOSEN: Final = (
    (Extent.UNSEEN, "a header that promises, then silence"),
    (Extent.ALL, "strays without end"),
    (Extent.ALL, "garbage for a message"),
    (Extent.SOME, "output without end, thrown away"),
)
_BY_NAME: Final = {(row.extent, row.name): row for row in ROWS}


def test_every_attack_is_in_the_table() -> None:
    assert len(_BY_NAME) == len(ROWS)
    for extent in (Extent.ALL, Extent.UNSEEN):
        assert {(extent, name) for name in ATTACKS} <= _BY_NAME.keys()


def test_nobody_may_be_told_0_but_by_the_agent() -> None:
    told = {row.name for row in ROWS if 0 in row.exit}
    assert told <= {name for name, attack in ATTACKS.items() if attack.exit == 0} | {
        name for _, name in _BY_NAME if name.startswith("random")
    }


def test_the_committed_page_is_of_this_table_and_good() -> None:
    assert page.PATH.read_text() == page.render(page.kept())
    assert {(row["extent"], row["name"]) for row in page.kept()["rows"]} == _BY_NAME.keys()
    assert "FAILED" not in page.PATH.read_text()


@pytest.mark.vm
@pytest.mark.parametrize("row", [_BY_NAME[chosen] for chosen in CHOSEN], ids=lambda row: row.name)
def test_attack(stage: Stage, scene: Scene, name: str, row: Row) -> None:
    result = play(stage, scene, row, name)
    assert result.complaints == (), result
