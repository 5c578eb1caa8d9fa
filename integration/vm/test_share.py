"""The shared directory as virtiofsd sees it, whatever the propagation of `/`.

virtiofsd's own mount namespace is looked into from the host, which is what the guest is served. Each case runs in a mount
namespace of its own, where `/` has the propagation under test.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["private", "shared", "slave"])
def seen(request, site):
    """What `share_probe` reports from a namespace with this propagation."""
    if request.param == "slave":  # a slave of our namespace that is shared again: what the daemon lives in
        command = ["unshare", "--mount", "--propagation", "slave", "unshare", "--mount", "--propagation", "shared"]
    else:
        command = ["unshare", "--mount", "--propagation", request.param]
    done = subprocess.run(
        [*command, sys.executable, "-m", "integration.vm.share_probe", str(site.run)],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    site.ledger.refresh()
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_mount_made_after_virtiofsd_started_is_served(seen):
    assert seen["late"] == "late"


def test_the_frame_cannot_be_changed_by_the_guest(seen):
    """Else a guest could plant a link where the host makes its next mount point."""
    assert "EROFS" in seen["write into frame"]


def test_what_is_mounted_keeps_its_own_mode(seen):
    assert seen["write into writable mount"] == "done"
    assert "EROFS" in seen["write into read-only mount"]


def test_an_unmount_reaches_virtiofsd(seen):
    assert seen["after unmount"] == []


def test_nothing_escapes_to_the_host(seen):
    """The pod's mounts exist once in the host's table, and virtiofsd's none at all."""
    assert seen["mounts"] == ["export", "shared"]
