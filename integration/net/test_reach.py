"""Two pods and the bridge they are on reach each other, whatever carries the frames."""

from collections.abc import Iterator

import pytest

from integration.harness import cni
from integration.harness.ctr import Ctr
from integration.harness.host import Host


@pytest.fixture(scope="module")
def network(host: Host) -> Iterator[cni.Network]:
    yield cni.bridge(host, "kt0", "10.88.0.0/24", "fd88::/64")
    host.run(["ip", "link", "delete", "kt0"])


def test_ping(ctr: Ctr, host: Host, network: cni.Network, name: str) -> None:
    with cni.namespace(host, name, network) as space:
        done = ctr.run(
            name, "sh", "-c", "ip addr; ip route; ping -c 2 -w 20 10.88.0.1", options=cni.words([space.path])
        )
        assert done.code == 0, done
        print(done)
