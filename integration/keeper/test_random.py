"""The short form of ``python -m integration.keeper``: a few deaths at random moments under all kinds of load."""

from collections.abc import Callable
from pathlib import Path

import pytest

from integration.harness.ctr import Ctr
from integration.harness.pods import Pod
from integration.keeper.deaths import nobody_notices
from integration.keeper.setups import Keeper, Loop, Setup

pytestmark = pytest.mark.vm


@pytest.mark.parametrize(
    ("loop", "kills"), [pytest.param(Loop.UVLOOP, 12, id="uvloop"), pytest.param(Loop.ASYNCIO, 4, id="asyncio")]
)
def test_nobody_notices(
    ctr: Ctr, name: str, pod_of: Callable[[str], Pod], tmp_path: Path, loop: Loop, kills: int
) -> None:
    nobody_notices(ctr, name, pod_of, Setup(Keeper.LAUNCHER, loop), kills, home=tmp_path)
