"""Fixtures of the network tests: a private host for the wires, and the bridges of the pods."""

from collections.abc import Iterator

import pytest

from integration.harness import cni
from integration.harness.host import Host

PLUGIN_PACKAGE = "containernetworking-plugins"


@pytest.fixture(scope="session", autouse=True)
def plugins() -> None:
    if not (cni.PLUGINS / "bridge").exists():
        pytest.exit(f"{cni.PLUGINS} has no plugins: install {PLUGIN_PACKAGE} (integration/setup does)", returncode=4)


@pytest.fixture(scope="module")
def network(host: Host) -> Iterator[cni.Network]:
    """A bridge of both families, which is the pods' gateway."""
    yield from bridge_of(host, "kt0", "10.88.0.0/24", "fd88::/64")


def bridge_of(host: Host, name: str, *subnets: str, **how: int) -> Iterator[cni.Network]:
    """The plugin would make its bridge with the first pod, and nobody would ever remove it."""
    cni.ip(host, "link", "add", name, "type", "bridge")
    cni.ip(host, "link", "set", name, "up")  # or its queueing discipline would look like a leak of the first pod
    yield cni.bridge(host, name, *subnets, **how)
    cni.ip(host, "link", "delete", name)
