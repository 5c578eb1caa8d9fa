"""Fixtures of the integration tests, a ladder: host → containerd → ctr → running, each private to this session.

Everything a fixture makes is gone when its scope ends, which the leak check asserts after every test and every module. The
session's processes are found by descent (`harness.process`), its mounts and links by namespace (`harness.host`).
"""

import atexit
import itertools
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.harness import image, leaks, pods, process, report
from integration.harness.containerd import Containerd
from integration.harness.ctr import KATA, Ctr
from integration.harness.host import Host

PREFIX = Path(os.environ.get("KATA_SHIMD_PREFIX", "/opt/kata-shimd"))
_numbers = itertools.count(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--runtime", default=KATA, help="runtime type to test; runc's proves the harness and the tests themselves"
    )
    parser.addoption(
        "--long",
        action="store_true",
        help="tests in their long form: every failure of CRI on every version, twenty pods, twenty clones",
    )


def pytest_configure(config: pytest.Config) -> None:
    process.become_subreaper()
    atexit.register(_end_what_is_left)  # the first to be registered is the last to be run
    config.pluginmanager.register(report, "kata-shimd-report")
    config.addinivalue_line("markers", "vm: asserts something that only a virtual machine has")


def _end_what_is_left() -> None:
    """Of a test that failed there may be a pod left, which nobody ends any more when this process is gone."""
    for command in process.end_descendants():
        print(f"ended, left by a test that failed: {command}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """On another runtime than ours, what is true of virtual machines only is left out (and counted as deselected)."""
    if config.getoption("--runtime") == KATA:
        return
    ours = [item for item in items if item.get_closest_marker("vm")]
    config.hook.pytest_deselected(items=ours)
    items[:] = [item for item in items if item not in ours]


@pytest.fixture(scope="session")
def runtime(request: pytest.FixtureRequest) -> str:
    return str(request.config.getoption("--runtime"))


@pytest.fixture(scope="session")
def host(runtime: str) -> Iterator[Host]:
    """The private machine; its PATH begins with the installed launcher's directory."""
    launcher = PREFIX / "bin/containerd-shim-kata-v2"
    if runtime == KATA and not launcher.exists():
        pytest.exit(f"{launcher} is not there: run integration/setup first (KATA_SHIMD_PREFIX={PREFIX})", returncode=4)
    with Host([PREFIX / "bin"]) as made:
        yield made


@pytest.fixture(scope="session")
def containerd(host: Host, request: pytest.FixtureRequest) -> Iterator[Containerd]:
    with Containerd(host) as daemon:
        request.session.stash[report.EVIDENCE] = report.Evidence(host, daemon)
        yield daemon
        report.forget(request.session.stash)


@pytest.fixture(scope="session")
def ctr(host: Host, containerd: Containerd, runtime: str, tmp_path_factory: pytest.TempPathFactory) -> Ctr:
    """A client with the test image imported, and the template of its pods made. Its namespace's name marks what is ours in tables
    that everybody shares.
    """
    archive = tmp_path_factory.mktemp("image") / "image.tar"
    image.write_image(archive)
    config = pods.guest_config(archive.parent)
    if runtime == KATA and pods.are_cloned():
        pods.make_template(host, PREFIX / "bin/kata-shimd", config)
    client = Ctr(containerd, f"t{secrets.token_hex(4)}", runtime, image.NAME, config)
    client("image", "import", archive).ok()
    return client


@pytest.fixture(scope="session")
def rootfs_dir(host: Host) -> Path:
    """The image's tree as a plain directory, for ``ctr run --rootfs``. Shared: a test must not write into it."""
    directory = host.root / "rootfs"
    directory.mkdir()
    image.write_rootfs(directory)
    return directory


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A container id of this test alone, readable in logs."""
    plain = re.sub(r"[^a-z0-9]+", "-", request.node.name.removeprefix("test_").lower()).strip("-")
    return f"{plain[:40].strip('-')}-{next(_numbers)}"


@pytest.fixture(scope="module")
def running(ctr: Ctr) -> Iterator[str]:
    """A container that stays, shared by a module's tests, for exec and attach. Its init reaps what execs leave behind."""
    container_id = f"running-{next(_numbers)}"
    ctr.start(container_id, "sh", "-c", "while :; do sleep 86400; done")
    yield container_id
    ctr.remove(container_id)


@pytest.fixture(scope="session")
def scene(host: Host, containerd: Containerd, ctr: Ctr) -> Iterator[leaks.Scene]:
    """What the leak check looks at."""
    looked_at = leaks.Scene(host, ctr.namespace, containerd)
    yield looked_at
    leaks.forget_namespace(looked_at)


@pytest.fixture(scope="module", autouse=True)
def module_leaves_nothing(scene: leaks.Scene) -> Iterator[None]:
    yield from _leaves_nothing(scene)


@pytest.fixture(autouse=True)
def leaves_nothing(scene: leaks.Scene, module_leaves_nothing: None, request: pytest.FixtureRequest) -> Iterator[None]:
    """The leak check, after every test. Pods of wider fixtures are part of the picture before."""
    if (evidence := request.session.stash.get(report.EVIDENCE, None)) is not None:
        evidence.mark()
    yield from _leaves_nothing(scene)


def _leaves_nothing(scene: leaks.Scene) -> Iterator[None]:
    before = leaks.snapshot(scene)
    yield
    if leaked := leaks.await_no_leak(scene, before):
        pytest.fail(leaks.report(leaked), pytrace=False)
