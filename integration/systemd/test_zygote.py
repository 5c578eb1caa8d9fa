"""Units whose daemons are forks of the node's zygote, which is a service as well."""

from collections.abc import Iterator

import pytest

from integration.conftest import PREFIX
from integration.systemd.manager import Systemd
from integration.systemd.stage import UnitStage
from kata_shimd.cli.systemd import ZYGOTE, texts


@pytest.fixture
def zygote(systemd: Systemd, stage: UnitStage) -> Iterator[int]:
    """The service, as it is installed; its pid in there. What it forks is the daemon of the stage."""
    text = texts(PREFIX / "bin", stage.shim.run_dir)[ZYGOTE]
    command = f"{PREFIX}/bin/kata-shimd zygote"
    assert command in text
    systemd.unit(ZYGOTE, text.replace(command, f"{stage.python} -m kata_shimd.zygote"))
    systemd.systemctl("start", ZYGOTE)
    yield int(systemd.show(ZYGOTE, "MainPID"))
    systemd.systemctl("stop", ZYGOTE)
