"""The short form of ``python -m integration.keeper``: a few deaths at random moments under all kinds of load."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from integration.harness.ctr import Ctr
from integration.harness.pods import Pod
from integration.keeper.killing import Noticed
from integration.keeper.load import Load
from integration.keeper.results import Run

pytestmark = pytest.mark.vm


def test_nobody_notices(kept: Ctr, name: str, pod_of: Callable[[str], Pod], unnoticed: Noticed) -> None:
    kills = int(os.environ.get("KATA_SHIMD_KILLS", "12"))
    kib = int(os.environ.get("KATA_SHIMD_STREAM_KIB", "2048"))
    seed = int(os.environ.get("KATA_SHIMD_SEED", "1"))
    seen = Load(kept, name, pod_of, size=kib << 10, seed=seed).run(kills)
    unnoticed.deletions = 1 + seen.calls.get("life", 0)
    seen.wrong += [f"containerd: {line}" for line in unnoticed.complaints()]
    if result := os.environ.get("KATA_SHIMD_RESULT"):
        Path(result).write_text(Run.of(seen, stream_kib=kib).text())
    print(
        f"\n{seen.kills} deaths; calls {seen.calls}; longest "
        + ", ".join(f"{w} {seen.longest(w):.2f} s" for w in seen.calls)
    )
    print("\n".join(seen.wrong))
    assert seen.wrong == []
