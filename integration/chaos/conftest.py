"""The stage for tests that let something fail."""

import pytest

from integration.chaos.stage import Stage
from integration.harness.containerd import Containerd
from integration.harness.ctr import Ctr
from integration.harness.host import Host


@pytest.fixture(scope="session")
def stage(host: Host, containerd: Containerd, ctr: Ctr) -> Stage:
    """Pods with short deadlines. Its containerd is the session's, so whoever ends it starts it again."""
    return Stage(host, containerd, ctr)
