"""One systemd for the session; every test leaves it as it was."""

import secrets
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from integration.conftest import PREFIX
from integration.harness import image, report
from integration.harness.ctr import KATA, Ctr
from integration.harness.scale import SCALE
from integration.harness.waiting import TooLate, eventually
from integration.systemd.containerd import ServiceContainerd
from integration.systemd.manager import Systemd
from integration.systemd.stage import UnitStage, install


@pytest.fixture(scope="session")
def systemd() -> Iterator[Systemd]:
    with Systemd([PREFIX / "bin"]) as running:
        install(running, PREFIX)
        yield running


@pytest.fixture(scope="module")
def containerd(systemd: Systemd, request: pytest.FixtureRequest) -> Iterator[ServiceContainerd]:
    """A service in there."""
    with ServiceContainerd(systemd) as service:
        request.session.stash[report.EVIDENCE] = report.Evidence(systemd, service)
        yield service
        report.forget(request.session.stash)


@pytest.fixture(scope="module")
def ctr(systemd: Systemd, containerd: ServiceContainerd) -> Ctr:
    """Its client, with the test image imported."""
    archive = systemd.root / "image.tar"
    image.write_image(archive)
    client = Ctr(containerd, f"t{secrets.token_hex(4)}", KATA, image.NAME)
    client("image", "import", archive).ok()
    return client


@pytest.fixture(scope="module", autouse=True)
def module_leaves_nothing() -> None:
    """No containerd of the session's; see `leaves_nothing`."""


@pytest.fixture(autouse=True)
def leaves_nothing(systemd: Systemd) -> Iterator[None]:
    """No process, unit, drop-in or mount outlives its test."""
    before = picture(systemd)
    yield
    try:
        eventually("nothing left", lambda: not picture(systemd) - before, within=10 * SCALE)
    except TooLate:
        new = sorted((picture(systemd) - before).elements())
        systemd.run(["systemctl", "kill", "--signal=KILL", "kata-pod@*"])
        systemd.run(["systemctl", "stop", "kata-pod@*"])
        pytest.fail(f"new: {new}\n{systemd.journal('--unit', 'kata-pod@*')}", pytrace=False)


def picture(systemd: Systemd) -> Counter[str]:
    """How many there are of each thing."""
    own = (f"process {_name(path)}" for path in (systemd.inside / "proc").glob("[0-9]*"))
    mounts = Path(f"/proc/{systemd.pid}/mounts").read_text().splitlines()
    return Counter([*systemd.units(), *systemd.drop_ins(), *own, *mounts])


def _name(process: Path) -> str:
    with suppress(OSError):
        return (process / "comm").read_text().strip()
    return "ended"


@pytest.fixture
def stage(systemd: Systemd) -> Iterator[UnitStage]:
    with tempfile.TemporaryDirectory(prefix="p", dir=systemd.root) as root:
        made = UnitStage(Path(root), systemd)
        yield made
        made.close()
