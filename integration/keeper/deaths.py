"""Deaths at random moments under one setup, and whether anybody noticed: the body of every ``test_random``.

The numbers are those of the short form, unless the environment says those of a part of ``python -m integration.keeper``.
"""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from integration.harness.ctr import Ctr
from integration.harness.pods import Pod, factory
from integration.keeper.killing import Noticed
from integration.keeper.load import Load
from integration.keeper.results import Run
from integration.keeper.setups import Setup


def nobody_notices(ctr: Ctr, name: str, pod_of: Callable[[str], Pod], setup: Setup, kills: int, *, home: Path) -> None:
    """``home`` is a directory for the pods' configuration."""
    kills = int(os.environ.get("KATA_SHIMD_KILLS", kills))
    kib = int(os.environ.get("KATA_SHIMD_STREAM_KIB", "2048"))
    seed = int(os.environ.get("KATA_SHIMD_SEED", "1"))
    config = home / "configuration.toml"
    config.write_text(setup.configuration() + factory())
    noticed = Noticed(ctr.containerd)
    seen = Load(replace(ctr, config=config), name, pod_of, setup, size=kib << 10, seed=seed).run(kills)
    noticed.deletions = 1 + seen.calls.get("life", 0)
    seen.wrong += [f"containerd: {line}" for line in noticed.complaints()]
    if result := os.environ.get("KATA_SHIMD_RESULT"):
        Path(result).write_text(Run.of(seen, setup, stream_kib=kib).text())
    longest = ", ".join(f"{what} {seen.longest(what):.2f} s" for what in seen.calls)
    print(f"\n{seen.kills} deaths; calls {seen.calls}; longest {longest}")
    print("\n".join(seen.wrong))
    assert seen.wrong == []
