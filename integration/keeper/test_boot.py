"""A daemon that dies over the boot of a real machine, or over its cloning, at this and that line of the ledger: the next has a
machine all the same.
"""

import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.conftest import PREFIX
from integration.harness.ctr import PATIENCE
from integration.harness.pods import BOOTED, CLONED
from integration.harness.waiting import eventually
from integration.keeper.verbs.stage import Stage

pytestmark = pytest.mark.vm
#: A pod whose `delete` came waits for no further Create: none comes here.
AT_ONCE = "[shimd.timeouts]\nabandoned_wait = 0.1\n"


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path, launcher=PREFIX / "bin/containerd-shim-kata-v2")
    made.configure("[shimd]\n", f"{AT_ONCE}[shimd]\n")
    yield made
    made.shim.delete("pod")
    made.close()


def live(stage: Stage) -> list[str]:
    """What runs for the pod, by its ledger."""
    records = stage.pod.ledger().live.values()
    return sorted(str(record.fields["what"]) for record in records if record.kind == "process")


#: Of a boot in a network of the pod's own: the namespace, the shared directory, virtiofsd, the claim of a user, QEMU, and
#: what follows when QEMU runs and the guest has been told nothing.
@pytest.mark.parametrize("k", [4, 7, 11])
def test_there_is_a_machine_and_one_only(stage: Stage, k: int) -> None:
    stage.shim.start("pod", **stage.env).ok()
    stage.arm(k)
    eventually("the boot", stage.booted, within=PATIENCE)
    stage.die.unlink(missing_ok=True)
    assert stage.deaths() == 1
    assert live(stage) == ["daemon", "keeper", "qemu", "virtiofsd"]
    assert stage.shim.delete("pod").code == 0
    eventually("nothing left", lambda: not stage.pod.directory.exists(), within=PATIENCE)


@pytest.fixture(scope="module")
def template() -> Iterator[Path]:
    """The end of a configuration whose pods have a template."""
    place = Path("/dev/shm", f"kt-{secrets.token_hex(4)}")
    with tempfile.TemporaryDirectory(prefix="kt-", dir="/tmp") as root:
        config = Path(root, "end.toml")
        config.write_text(f'{CLONED}template_path = "{place}"\n')
        try:
            words = [PREFIX / "bin/kata-shimd", "template", "build", "--config", config, "--run-dir", Path(root, "k")]
            subprocess.run(words, check=True, capture_output=True)
            yield config
        finally:
            shutil.rmtree(place, ignore_errors=True)


#: Of a clone in a network of the pod's own: before there is a machine, half a clone on record, its QEMU on record, what is plugged
#: in, and when the guest is itself and has been told nothing.
@pytest.mark.parametrize("k", [4, 8, 12, 15, 18])
def test_half_a_clone_is_undone_and_a_whole_one_taken_over(stage: Stage, template: Path, k: int) -> None:
    config = stage.root / "configuration.toml"
    config.write_text(config.read_text().replace(BOOTED, template.read_text()))
    stage.shim.start("pod", **stage.env).ok()
    stage.arm(k)
    eventually("the boot", stage.booted, within=PATIENCE)
    stage.die.unlink(missing_ok=True)
    assert stage.deaths() == 1
    assert live(stage) == ["daemon", "keeper", "qemu", "virtiofsd"]
    assert [event["event"] for event in stage.pod.journal()].count("cloned") >= 1
    assert not stage.pod.ledger().values.get("half-clone")
    assert stage.shim.delete("pod").code == 0
    eventually("nothing left", lambda: not stage.pod.directory.exists(), within=PATIENCE)
