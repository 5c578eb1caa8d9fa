"""Built guests on disk: ``DIRECTORY/<digest>/`` with its files, and the link ``DIRECTORY/current``.

A directory that bears a digest is whole, because it is filled under another name and renamed. Pods that run hold their files
open, so that removing or replacing a guest does them no harm.
"""

import errno
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kata_shimd.errors import FailedPrecondition, HostFailed, NotFound, PermissionDenied, ResourceExhausted, ShimError

DIRECTORY = Path("/var/lib/kata-shimd/guest")
CURRENT = "current"
MANIFEST = "manifest.json"
LOCK = ".lock"
UNFINISHED = ".build-"

_ERRORS: dict[int, tuple[type[ShimError], str]] = {
    errno.ENOSPC: (ResourceExhausted, "remove old guests: kata-shimd guest ls, guest rm"),
    errno.EDQUOT: (ResourceExhausted, "remove old guests: kata-shimd guest ls, guest rm"),
    errno.EACCES: (PermissionDenied, "run as root, or name directories of your own with --output and --cache"),
    errno.EPERM: (PermissionDenied, "run as root, or name directories of your own with --output and --cache"),
    errno.EROFS: (PermissionDenied, "name another directory with --output or --cache"),
}


@dataclass(frozen=True, slots=True)
class Guest:
    """``record`` is the guest's manifest.json."""

    digest: str
    path: Path
    record: dict[str, Any]
    current: bool


@contextmanager
def os_errors(step: str, obj: str) -> Iterator[None]:
    """Makes an OSError of the block one of ours, by its number."""
    try:
        yield
    except OSError as error:
        kind, hint = _ERRORS.get(error.errno or 0, (HostFailed, ""))
        raise kind(step, str(error.filename or obj), error.strerror or str(error), hint=hint) from error


class Store:
    def __init__(self, directory: Path = DIRECTORY) -> None:
        self.directory = directory

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One builder at a time; the second one waits, and finds the guest made."""
        with os_errors("lock", str(self.directory)):
            self.directory.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        """A private directory on the same file system. The lock is held, so one left by a killed builder is nobody's."""
        with os_errors("make directory", str(self.directory)):
            for left in self.directory.glob(f"{UNFINISHED}*"):
                shutil.rmtree(left)
            with tempfile.TemporaryDirectory(dir=self.directory, prefix=UNFINISHED) as path:
                yield Path(path)

    def has(self, digest: str) -> bool:
        return (self.directory / digest / MANIFEST).is_file()

    def publish(self, finished: Path, digest: str) -> None:
        """Gives the finished directory its name; everything of it is on disk before it has one."""
        target = self.directory / digest
        with os_errors("publish guest", str(target)):
            for path in (*finished.iterdir(), finished):
                _sync(path)
            finished.chmod(0o755)
            if target.exists():
                # Two renames are not one, but between them `current` only dangles; a rename cannot replace a full directory.
                target.rename(finished.with_name(f"{finished.name}-replaced"))
            finished.rename(target)
            _sync(self.directory)

    def switch(self, digest: str) -> None:
        """Makes the guest the one that new pods get."""
        with os_errors("switch guest", str(self.directory / CURRENT)):
            link = self.directory / f"{UNFINISHED}current"
            link.unlink(missing_ok=True)
            link.symlink_to(digest)
            link.replace(self.directory / CURRENT)
            _sync(self.directory)

    def current(self) -> str | None:
        link = self.directory / CURRENT
        return link.readlink().name if link.is_symlink() else None

    def guests(self) -> list[Guest]:
        """By age, the newest first; none where there is no such directory."""
        with os_errors("list guests", str(self.directory)):
            records = sorted(
                self.directory.glob(f"[!.]*/{MANIFEST}"), key=lambda path: path.stat().st_mtime_ns, reverse=True
            )
        return [self._read(path) for path in records if path.parent.name != CURRENT]

    def get(self, name: str) -> Guest:
        """``name`` is a digest, its unambiguous beginning, or "current". Raises NotFound."""
        guests = self.guests()
        found = [guest for guest in guests if guest.digest.startswith(name) or (name == CURRENT and guest.current)]
        if len(found) != 1 or not name:
            cause = f"{len(found)} guests match" if found else "no such guest"
            raise NotFound("find guest", name or '""', cause, hint="kata-shimd guest ls; kata-shimd guest build")
        return found[0]

    def remove(self, name: str, *, force: bool = False) -> Guest:
        """Raises FailedPrecondition for the current one without ``force``."""
        with self.locked():
            guest = self.get(name)
            if guest.current and not force:
                hint = "build or choose another one first, or --force"
                raise FailedPrecondition("remove guest", guest.digest, "it is the current one", hint=hint)
            with os_errors("remove guest", str(guest.path)):
                if guest.current:
                    (self.directory / CURRENT).unlink()
                doomed = self.directory / f"{UNFINISHED}{guest.digest}"
                guest.path.rename(doomed)
                shutil.rmtree(doomed)
        return guest

    def _read(self, path: Path) -> Guest:
        with os_errors("read guest", str(path)):
            try:
                record = json.loads(path.read_text())
            except ValueError as error:
                raise HostFailed("read guest", str(path), str(error), hint="build it again with --force") from error
        digest = path.parent.name
        return Guest(digest, path.parent, record, digest == self.current())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
