"""Fixtures of the CRI tests: a node of each version of containerd, its client, and pods that are gone after their test.

Every test here runs once on each version, and over the Task API v3 in the long form or where it is marked so. What the tests
of ``ctr`` call host, containerd and scene is the node's here, so the leak check looks at the node.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from integration.conftest import PREFIX
from integration.harness import cri, gotools, image, leaks, report
from integration.harness.cri import CriContainerd, Release, container_config, pod_config
from integration.harness.crictl import Crictl
from integration.harness.ctr import KATA, Ctr
from integration.harness.host import Host
from integration.harness.install import Layout
from integration.harness.pods import are_cloned, make_template

#: containerd's versions, and the Task API that it speaks with us where that is not the default.
V3 = "2.4-v3"
RELEASES = ("1.6", "2.4", V3)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "v3: in CI too over the Task API v3, as which every CRI test runs in the long form"
    )
    config.addinivalue_line("markers", "v3_alone: makes sense over the Task API v3 alone")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    gone = [
        item for item in items if isinstance(item, pytest.Function) and not _wanted(item, config.getoption("--long"))
    ]
    config.hook.pytest_deselected(items=gone)
    items[:] = [item for item in items if item not in gone]


def _wanted(item: pytest.Function, long: bool) -> bool:
    release = item.callspec.params.get("release") if hasattr(item, "callspec") else None
    if item.get_closest_marker("v3_alone"):
        return release == V3
    return release != V3 or long or item.get_closest_marker("v3") is not None


@pytest.fixture(scope="session")
def layout() -> Layout:
    return Layout.from_environment()


@pytest.fixture(scope="session", params=RELEASES)
def release(request: pytest.FixtureRequest, layout: Layout) -> Release:
    made = cri.debian() if request.param == "1.6" else cri.newest(layout)
    return cri.speaking_v3(made) if request.param == V3 else made


@pytest.fixture(scope="session")
def host(release: Release) -> Iterator[Host]:
    with Host([PREFIX / "bin"]) as made:
        cri.prepare(made)
        yield made


@pytest.fixture(scope="session")
def containerd(host: Host, release: Release, request: pytest.FixtureRequest) -> Iterator[CriContainerd]:
    with CriContainerd(host, release) as daemon:
        request.session.stash[report.EVIDENCE] = report.Evidence(host, daemon)
        yield daemon
        report.forget(request.session.stash)


@pytest.fixture(scope="session")
def scene(host: Host, containerd: CriContainerd) -> leaks.Scene:
    return leaks.Scene(host, cri.NAMESPACE, containerd)


@pytest.fixture(scope="session")
def crictl(containerd: CriContainerd, layout: Layout, tmp_path_factory: pytest.TempPathFactory, runtime: str) -> Crictl:
    """The client, with the pause image and the test's own in place, and the template of its pods."""
    home = tmp_path_factory.mktemp("crictl")
    if runtime == KATA and are_cloned():
        make_template(containerd.host, PREFIX / "bin/kata-shimd", containerd.home / "kata.toml")
    archive = home / "images.tar"
    image.write_archive(archive, {image.NAME: image.pack(image.tree(), image.CONFIG), cri.PAUSE: image.pause()})
    Ctr(containerd, cri.NAMESPACE)("image", "import", archive).ok()
    handler = next(name for name, handler in cri.HANDLERS.items() if handler.type == runtime)
    return Crictl(gotools.ensure(layout)[gotools.CRI_TOOLS.name] / "crictl", containerd, home, handler)


@dataclass(slots=True)
class Pods:
    """Makes pods and containers of one test, and takes them away."""

    crictl: Crictl
    prefix: str
    directory: Path
    configs: dict[str, dict[str, Any]] = field(default_factory=dict)

    def run(self, name: str = "", **more: Any) -> str:
        """A running pod; its logs are below the test's directory."""
        more.setdefault("log_directory", str(self.directory))
        config = pod_config(f"{self.prefix}{name}", **more)
        pod_id = self.crictl.runp(config)
        self.configs[pod_id] = config
        return pod_id

    def create(self, pod_id: str, *command: str, name: str = "main", **more: Any) -> str:
        """A created container of the pod."""
        more.setdefault("log_path", f"{name}.log")
        config = container_config(name, image.NAME, command, **more)
        return self.crictl.create(pod_id, config, self.configs[pod_id])

    def start(self, pod_id: str, *command: str, **more: Any) -> str:
        """A running container of the pod."""
        container_id = self.create(pod_id, *command, **more)
        self.crictl.start(container_id)
        return container_id

    def remove(self, pod_id: str) -> None:
        self.crictl.stopp(pod_id)
        self.crictl.rmp(pod_id)


@pytest.fixture
def pods(crictl: Crictl, name: str, tmp_path: Path, scene: leaks.Scene) -> Iterator[Pods]:
    made = Pods(crictl, name, tmp_path)
    yield made
    for pod_id in made.configs.keys() & crictl.pods().keys():
        crictl.rmp(pod_id)


@pytest.fixture(scope="module")
def shared(crictl: Crictl, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Pods]:
    """One pod for a whole module, as the module's ``POD`` wants it."""
    made = Pods(
        crictl, f"{request.module.__name__.rpartition('.')[2].replace('_', '-')}-", tmp_path_factory.mktemp("logs")
    )
    made.run("pod", **getattr(request.module, "POD", {}))
    yield made
    for pod_id in made.configs:
        made.remove(pod_id)


@pytest.fixture(scope="module")
def pod_id(shared: Pods) -> str:
    """The shared pod."""
    return next(iter(shared.configs))


#: A container that stays until it is told to end.
STAY = ("sh", "-c", "trap 'exit 0' TERM; while :; do sleep 86400 & wait; done")

Maker = Callable[..., str]
