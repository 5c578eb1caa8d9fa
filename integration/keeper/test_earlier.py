"""Pods of the commit before this one, moved to this one under load: the short form of ``python -m integration.keeper.upgrades``."""

from pathlib import Path

import pytest

from integration.conftest import PREFIX
from integration.keeper import earlier
from integration.keeper.installation import Installation
from integration.keeper.moving import node, travel

pytestmark = pytest.mark.vm


def test_from_the_previous_commit_nobody_notices(name: str, tmp_path: Path) -> None:
    try:
        commit = earlier.previous()
    except earlier.NoHistory as reason:
        pytest.skip(str(reason))
    old = earlier.install(commit, tmp_path / "old")
    with node(tmp_path) as on:
        journey = travel(on, name, [old, Installation(PREFIX)], size=64 << 10)
    seen, ((pods, seconds),) = journey.seen, journey.moves
    longest = ", ".join(f"{what} {seen.longest(what):.2f} s" for what in seen.calls)
    print(f"\nfrom {earlier.described(commit)}: {pods} pods in {seconds:.1f} s; calls {seen.calls}; longest {longest}")
    print("\n".join(seen.wrong))
    assert seen.wrong == []
    assert pods >= 1
