"""Clients whose pods have a keeper, and the killing of what stands behind them."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from integration.harness import image
from integration.harness.containerd import Containerd
from integration.harness.ctr import Ctr
from integration.harness.pods import Pod, factory, pod_hash
from integration.keeper.killing import Noticed
from integration.keeper.setups import Keeper, Loop, Setup


@pytest.fixture(scope="session")
def kept(ctr: Ctr, tmp_path_factory: pytest.TempPathFactory) -> Ctr:
    """``ctr`` for pods with a keeper."""
    config = tmp_path_factory.mktemp("config") / "configuration.toml"
    config.write_text(Setup(Keeper.LAUNCHER, Loop.UVLOOP).configuration() + factory())
    return replace(ctr, config=config)


@pytest.fixture
def own(kept: Ctr, tmp_path: Path) -> Iterator[Ctr]:
    """`kept` with a containerd that the test may kill: the session's would be missed."""
    with Containerd(kept.containerd.host) as containerd:
        made = replace(kept, containerd=containerd)
        image.write_image(archive := tmp_path / "image.tar")
        made("image", "import", archive).ok()
        yield made


@pytest.fixture
def pod_of(ctr: Ctr) -> Callable[[str], Pod]:
    run_dir = Path(ctr.containerd.host.run_dir)
    return lambda name: Pod(run_dir, pod_hash(str(ctr.containerd.address), ctr.namespace, name))


@pytest.fixture
def unnoticed(containerd: Containerd) -> Iterator[Noticed]:
    """Fails the test when containerd has seen a shim die."""
    noticed = Noticed(containerd)
    yield noticed
    assert noticed.complaints() == []
