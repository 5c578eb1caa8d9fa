"""A container's files on the host: its rootfs and volumes, mounted below the directory that the guest sees.

A guest believes for a second what it has seen of a directory (`cache=auto` of virtiofsd), also of one that is gone: so no two
creations share a name, though containerd may use an id again at once.

The domain's `Host` port. Every mount and directory is in the ledger before it is made, and taken away by the launcher's ``undo``.
"""

import secrets
from collections.abc import Callable
from pathlib import Path

from kata_shimd.errors import HostFailed
from kata_shimd.host import mounts
from kata_shimd.host.undo import undo
from kata_shimd.ledger import Kind, Ledger, Record, container_scope
from kata_shimd.pod.storage import RootfsShare, Share
from kata_shimd.pod.values import Mount


class HostFiles:
    """Shares below ``shared``, which is made before the first container (`vm.share`)."""

    def __init__(
        self, ledger: Ledger, launcher: Path, shared: Path, *, again: Callable[[], bool] = lambda: False
    ) -> None:
        """``again()`` says whether what is asked for may have been done by an earlier daemon: then what is there stays."""
        self._ledger, self._launcher, self._shared, self._again = ledger, launcher, shared, again
        self._names: dict[str, str] = {}
        self._records: dict[str, int] = {}

    def directory(self, container_id: str) -> str:
        """The name of its directory: one of its own for each creation, and for one that is taken up again what it was."""
        if container_id not in self._names:
            known = self._recorded(container_id) if self._again() else None
            fresh = f"{container_id}-{secrets.token_hex(4)}"
            self._names[container_id] = Path(known.fields["path"]).name if known else fresh
        return self._names[container_id]

    async def share_rootfs(self, container_id: str, rootfs: RootfsShare) -> None:
        """Mount what containerd gave at ``shared/<directory>/rootfs``.

        :raises HostFailed: naming the mount
        """
        target = self._made(container_id) / "rootfs"
        _make_directory(target)
        for mount in rootfs.mounts:
            self._mount(container_id, mount, target)

    async def share(self, container_id: str, share: Share) -> None:
        """Bind a file or directory at ``shared/<directory>/mounts/<name>``, read-only if it is, with all below it or not."""
        target = self._made(container_id) / "mounts" / share.name
        _make_directory(target.parent)
        if share.source.is_dir():
            _make_directory(target)
        else:
            target.touch(mode=0o600)
        options = ("rbind", "ro" if share.readonly else "rw", *(("rro",) if share.throughout else ()))
        self._mount(container_id, Mount("bind", str(share.source), options), target)

    async def undo_container(self, container_id: str) -> None:
        self._names.pop(container_id, None)
        self._records.pop(container_id, None)
        scope = container_scope(container_id)
        await undo(self._ledger, self._launcher, scope, step="undo container", obj=container_id)

    def _made(self, container_id: str) -> Path:
        path = self._shared / self.directory(container_id)
        if container_id not in self._records:
            known = self._recorded(container_id)
            if known is None or known.fields["path"] != str(path):
                scope = container_scope(container_id)
                self._records[container_id] = self._ledger.plan(Kind.DIR, scope=scope, path=str(path))
            else:
                self._records[container_id] = known.n
            _make_directory(path)
        return path

    def _recorded(self, container_id: str) -> Record | None:
        """Its newest directory; there is an older one where an undo failed."""
        of_it = [r for r in self._ledger.state.live.values() if r.scope == container_scope(container_id)]
        made = [r for r in of_it if r.kind == Kind.DIR and Path(r.fields["path"]).parent == self._shared]
        return max(made, key=lambda record: record.n, default=None)

    def _mount(self, container_id: str, mount: Mount, target: Path) -> None:
        if self._again() and mounts.is_mount_point(target):
            return
        needs = (self._records[container_id],)
        mounts.mount(self._ledger, mount, target, scope=container_scope(container_id), needs=needs)


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(mode=0o711, exist_ok=True)
    except OSError as error:
        raise HostFailed("make directory", str(path), error.strerror or "") from error
