"""The short form of ``python -m integration.keeper``: a few deaths at random moments under all kinds of load."""

import os
from collections.abc import Callable

import pytest

from integration.harness.ctr import Ctr
from integration.harness.pods import Pod
from integration.keeper.killing import Noticed
from integration.keeper.load import Load

pytestmark = pytest.mark.vm


def test_nobody_notices(kept: Ctr, name: str, pod_of: Callable[[str], Pod], unnoticed: Noticed) -> None:
    kills = int(os.environ.get("KATA_SHIMD_KILLS", "12"))
    size = int(os.environ.get("KATA_SHIMD_STREAM_KIB", "2048")) << 10
    seen = Load(kept, name, pod_of, size=size, seed=1).run(kills)
    print(
        f"\n{seen.kills} deaths; calls {seen.calls}; longest "
        + ", ".join(f"{w} {seen.longest(w):.2f} s" for w in seen.calls)
    )
    print("\n".join(seen.wrong))
    assert seen.wrong == []
    unnoticed.deletions = 1 + seen.calls.get("life", 0)
