"""The shared directory: what the host puts under POD/shared, the guest sees, and cannot change the frame of.

    POD/shared    bound onto itself and made shared; the host mounts rootfs and volumes below it
    POD/export    the same tree, receiving those mounts, read-only at the top; what virtiofsd serves

The order matters: a mount made below virtiofsd's source after virtiofsd has copied its mount namespace reaches the guest only if
its parent was made shared before (`host.md`), whatever the propagation of `/`. The read-only view keeps a hostile guest from
planting a link where the host will make its next mount point. Mounts below keep their own read-only flag.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kata_shimd.errors import HostFailed
from kata_shimd.host import mounts
from kata_shimd.ledger import BOOT, Kind, Ledger
from kata_shimd.vm.argv import share_device
from kata_shimd.vm.monitor import Monitor
from kata_shimd.vm.spec import VmSpec

SHARED: Final = "shared"
EXPORT: Final = "export"


@dataclass(frozen=True, slots=True)
class SharedDirectory:
    """``shared`` is the host's side, ``export`` what virtiofsd serves, ``record`` what must outlive virtiofsd."""

    shared: Path
    export: Path
    record: int


def make(ledger: Ledger, pod_dir: Path) -> SharedDirectory:
    """Make both views, empty.

    :raises HostFailed: a directory or mount failed
    """
    shared, shared_dir = _directory(ledger, pod_dir / SHARED)
    export, export_dir = _directory(ledger, pod_dir / EXPORT)
    itself = mounts.bind(ledger, shared, shared, recursive=False, scope=BOOT, needs=(shared_dir,))
    # First private: a bind of a path below a shared `/` is its peer, and what is mounted in it would show twice.
    mounts.make_private(shared)
    mounts.make_shared(shared)
    needs = (export_dir, itself)
    view = mounts.bind(ledger, shared, export, recursive=False, readonly=True, scope=BOOT, needs=needs)
    mounts.make_slave(export)
    return SharedDirectory(shared, export, view)


async def plug(monitor: Monitor, spec: VmSpec) -> None:
    """Plug the shared directory into a VM with ``spec.incoming``, which is born without it, at the last root port.

    :raises VmFailed, DeadlineExceeded: QEMU would not, or virtiofsd does not answer
    """
    await monitor.execute("device_add", {**share_device(spec), "bus": f"rp{spec.root_ports - 1}"})


def _directory(ledger: Ledger, path: Path) -> tuple[Path, int]:
    record = ledger.plan(Kind.DIR, scope=BOOT, path=str(path))
    try:
        # The guest's processes of any user pass through the top; the pod's directory above keeps the host's users out.
        path.mkdir(mode=0o755)
        path.chmod(0o755)
    except OSError as error:
        raise HostFailed("make shared directory", str(path), error.strerror or "") from error
    return path, record
