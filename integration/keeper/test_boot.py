"""A daemon that dies over the boot of a real machine, at this and that line of the ledger: the next has a machine all the same."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.conftest import PREFIX
from integration.harness.ctr import PATIENCE
from integration.harness.waiting import eventually
from integration.keeper.verbs.stage import Stage

pytestmark = pytest.mark.vm


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path, launcher=PREFIX / "bin/containerd-shim-kata-v2")
    yield made
    made.shim.delete("pod")
    made.close()


#: Of a boot in a network of the pod's own: the namespace, the shared directory, virtiofsd, the claim of a user, QEMU, and
#: what follows when QEMU runs and the guest has been told nothing.
@pytest.mark.parametrize("k", [4, 7, 11])
def test_there_is_a_machine_and_one_only(stage: Stage, k: int) -> None:
    stage.shim.start("pod", **stage.env).ok()
    stage.arm(k)
    eventually("the boot", stage.booted, within=PATIENCE)
    stage.die.unlink(missing_ok=True)
    assert stage.deaths() == 1
    lines = map(json.loads, (stage.shim.pod("pod") / "ledger").read_text().splitlines())
    over = {line["n"] for line in lines if line["op"] == "undone"}
    lines = map(json.loads, (stage.shim.pod("pod") / "ledger").read_text().splitlines())
    live = [line["what"] for line in lines if line["op"] == "plan" and "what" in line and line["n"] not in over]
    assert sorted(live) == ["daemon", "keeper", "qemu", "virtiofsd"]
    assert stage.shim.delete("pod").code == 0
    eventually("nothing left", lambda: not stage.pod.directory.exists(), within=PATIENCE)
