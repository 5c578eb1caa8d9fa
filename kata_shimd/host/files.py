"""A container's files on the host: its rootfs and volumes, mounted below the directory that the guest sees.

The domain's `Host` port. Every mount and directory is in the ledger before it is made, and taken away by the launcher's ``undo``.
"""

from collections.abc import Callable
from pathlib import Path

from kata_shimd.errors import HostFailed
from kata_shimd.host import mounts
from kata_shimd.host.undo import undo
from kata_shimd.ledger import Kind, Ledger, container_scope
from kata_shimd.pod.storage import RootfsShare, Share
from kata_shimd.pod.values import Mount


class HostFiles:
    """Shares below ``shared``, which is made before the first container (`vm.share`)."""

    def __init__(
        self, ledger: Ledger, launcher: Path, shared: Path, *, again: Callable[[], bool] = lambda: False
    ) -> None:
        """``again()`` says whether what is asked for may have been done by an earlier daemon: then what is there stays."""
        self._ledger, self._launcher, self._shared, self._again = ledger, launcher, shared, again
        self._directories: dict[str, int] = {}

    async def share_rootfs(self, container_id: str, rootfs: RootfsShare) -> None:
        """Mount what containerd gave at ``shared/<container>/rootfs``.

        :raises HostFailed: naming the mount
        """
        target = self._directory(container_id) / "rootfs"
        _make_directory(target)
        for mount in rootfs.mounts:
            self._mount(container_id, mount, target)

    async def share(self, container_id: str, share: Share) -> None:
        """Bind a file or directory at ``shared/<container>/mounts/<name>``, read-only if it is."""
        target = self._directory(container_id) / "mounts" / share.name
        _make_directory(target.parent)
        if share.source.is_dir():
            _make_directory(target)
        else:
            target.touch(mode=0o600)
        options = ("rbind", "ro") if share.readonly else ("rbind", "rw")
        self._mount(container_id, Mount("bind", str(share.source), options), target)

    async def undo_container(self, container_id: str) -> None:
        self._directories.pop(container_id, None)
        scope = container_scope(container_id)
        await undo(self._ledger, self._launcher, scope, step="undo container", obj=container_id)

    def _directory(self, container_id: str) -> Path:
        path = self._shared / container_id
        if container_id not in self._directories:
            scope = container_scope(container_id)
            known = self._recorded(path) if self._again() else None
            self._directories[container_id] = known or self._ledger.plan(Kind.DIR, scope=scope, path=str(path))
            _make_directory(path)
        return path

    def _recorded(self, path: Path) -> int | None:
        records = self._ledger.state.live.values()
        return next((r.n for r in records if r.kind == Kind.DIR and r.fields.get("path") == str(path)), None)

    def _mount(self, container_id: str, mount: Mount, target: Path) -> None:
        if self._again() and mounts.is_mount_point(target):
            return
        needs = (self._directories[container_id],)
        mounts.mount(self._ledger, mount, target, scope=container_scope(container_id), needs=needs)


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(mode=0o711, exist_ok=True)
    except OSError as error:
        raise HostFailed("make directory", str(path), error.strerror or "") from error
