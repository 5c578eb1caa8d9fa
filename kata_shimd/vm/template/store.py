"""Templates on disk, which is memory: a directory each, made aside and renamed into place, believed only if it is ours and whole.

    PATH/KEY/header     a line with the SHA-256 of the rest, and the rest, JSON: key, sizes, digest of the state, what it depends on
    PATH/KEY/state      device state
    PATH/KEY/memory     guest RAM, sparse
    PATH/KEY.lock       held by who makes KEY
    PATH/KEY.failed     its time says when KEY last came to nothing
    PATH/KEY.missed     a pod whose machine is its own has missed KEY

RAM has a checksum, which each clone's copy of it is held against while QEMU starts. It is no digest: what guards a template against
more than accidents is that nobody but root may come near.
"""

import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kata_shimd.errors import HostFailed
from kata_shimd.vm.template import memory
from kata_shimd.vm.template.key import LENGTH
from kata_shimd.vm.template.migration import MAX_STATE

HEADER: Final = "header"
STATE: Final = "state"
MEMORY: Final = "memory"
#: A template that could not be made, or whose clone failed, is not tried again for so long, in seconds.
BACK_OFF: Final = 600.0
_LOCK: Final = ".lock"
_FAILED: Final = ".failed"
_MISSED: Final = ".missed"
_NEW: Final = ".new-"
_OLD: Final = ".old-"
_MAX_HEADER: Final = 64 << 10
_BLOCK: Final = 512
_KEY: Final = re.compile(f"[0-9a-f]{{{LENGTH}}}")
_FACTS: Final = frozenset({"key", "memory", "used", "crc32", "state", "sha256", "made", "depends"})
_TMPFS: Final = "tmpfs"


class Refused(HostFailed):
    """What lies there is no template that can be believed."""


@dataclass(frozen=True, slots=True)
class Template:
    """One that was found whole, as far as can be seen without reading ``memory``, a descriptor that the caller owns, open for
    reading. ``checksum`` is what its content is to have.
    """

    key: str
    state: bytes
    memory: int
    size: int
    checksum: int


@dataclass(frozen=True, slots=True)
class Listed:
    """What `ls` shows: ``problem`` is empty for one that can be used. Sizes in bytes, ``made`` in seconds since the epoch."""

    key: str
    problem: str
    size: int = 0
    used: int = 0
    made: float = 0.0
    depends: Mapping[str, Any] | None = None


class Store:
    """The templates below one directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self) -> None:
        """Make the directory if it is missing, and see that it is ours and in memory.

        :raises HostFailed: it cannot hold templates
        """
        self._check_memory()
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise HostFailed("use template path", str(self.path), error.strerror or "") from error
        self._check_ours()

    def check_place(self) -> None:
        """The same of a directory that is there, or of where it would be.

        :raises HostFailed: it cannot hold templates
        """
        self._check_memory()
        if self.path.exists():
            self._check_ours()

    def _check_memory(self) -> None:
        if (kind := _filesystem(self.path)) != _TMPFS:
            hint = "mount a tmpfs there, or set factory.template_path to a place on one"
            raise HostFailed(
                "use template path", str(self.path), f"it is on {kind or 'no known file system'}", hint=hint
            )

    def _check_ours(self) -> None:
        try:
            _check_owner(self.path, self.path.lstat(), stat.S_ISDIR)
        except OSError as error:
            raise HostFailed("use template path", str(self.path), error.strerror or "") from error

    def room(self) -> tuple[int, int]:
        """Bytes that are free on the directory's file system, and how large that is."""
        existing = next(path for path in (self.path, *self.path.parents) if path.exists())
        status = os.statvfs(existing)
        return status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize

    def find(self, key: str) -> Template | None:
        """The template ``key``, or None.

        :raises Refused: there is one that cannot be believed
        """
        try:
            directory = os.open(self.path / key, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Refused("open template", key, error.strerror or "") from error
        try:
            _check_owner(self.path / key, os.fstat(directory), stat.S_ISDIR)
            header = _header(directory, key)
            state, ram = _state(directory, header), _memory(directory, header)
            return Template(key, state, ram, header["memory"], header["crc32"])
        finally:
            os.close(directory)

    @contextmanager
    def making(self, key: str) -> Iterator[bool]:
        """Whether we are who makes ``key``: false when somebody else does."""
        path = self.path / (key + _LOCK)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise HostFailed("lock template", str(path), error.strerror or "") from error
        try:
            yield _locks(fd, path)
        finally:
            os.close(fd)

    def publish(self, key: str, depends: Mapping[str, Any], state: bytes, ram: int) -> int:
        """Write a template aside and rename it into place; what had the name before is gone. Blocks.

        :param ram: the file of guest RAM
        :returns: bytes of RAM that were in use
        :raises HostFailed: no room, and nothing is left of it
        """
        aside = self.path / f"{key}{_NEW}{secrets.token_hex(4)}"
        try:
            aside.mkdir(mode=0o700)
            used, checksum = _write_memory(aside / MEMORY, ram)
            _write(aside / STATE, state)
            digest, size = hashlib.sha256(state).hexdigest(), os.fstat(ram).st_size
            facts = {"key": key, "memory": size, "used": used, "crc32": checksum, "state": len(state), "sha256": digest}
            _write(aside / HEADER, _encode({**facts, "made": time.time(), "depends": depends}))
            self.remove(key)
            aside.rename(self.path / key)
        except OSError as error:
            raise HostFailed("write template", key, error.strerror or "") from error
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return used

    def remove(self, key: str) -> bool:
        """Take a template away; clones that are being made of it are not disturbed. Whether there was one."""
        gone = self.path / f"{key}{_OLD}{secrets.token_hex(4)}"
        try:
            (self.path / key).rename(gone)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise HostFailed("remove template", key, error.strerror or "") from error
        if gone.is_symlink() or not gone.is_dir():
            gone.unlink()
        else:
            shutil.rmtree(gone, ignore_errors=True)
        return True

    def sweep(self, held: str = "") -> None:
        """Remove what makers that died have left. ``held`` is a key whose lock the caller has."""
        for path in (*self.path.glob(f"*{_NEW}*"), *self.path.glob(f"*{_OLD}*")):
            key = path.name.partition(".")[0]
            with self.making(key) as ours:
                if ours or key == held:
                    shutil.rmtree(path, ignore_errors=True)

    def list(self) -> list[Listed]:
        """All templates, by key. What else lies there is somebody else's, such as Kata's own, which has the same place."""
        if not self.path.is_dir():
            return []
        return [self._listed(path.name) for path in sorted(self.path.iterdir()) if _KEY.fullmatch(path.name)]

    def failed(self, key: str, why: str = "") -> None:
        """Remember that ``key`` came to nothing just now, and why."""
        with suppress(OSError):
            path = self.path / (key + _FAILED)
            path.touch(mode=0o600)
            path.write_text(why)

    def why_failed(self, key: str) -> str:
        """Empty when it is not known."""
        try:
            return (self.path / (key + _FAILED)).read_text(errors="replace")
        except OSError:
            return ""

    def forgive(self, key: str) -> None:
        with suppress(OSError):
            (self.path / (key + _FAILED)).unlink(missing_ok=True)

    def missed(self, key: str) -> bool:
        """Remember that ``key`` was missed; whether it had been before."""
        path = self.path / (key + _MISSED)
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            return True
        except OSError as error:
            raise HostFailed("note template", str(path), error.strerror or "") from error
        return False

    def is_at_work(self, key: str) -> bool:
        """Whether somebody makes it now."""
        path = self.path / (key + _LOCK)
        if not path.exists():
            return False
        with self.making(key) as ours:
            return not ours

    def resting(self, key: str) -> bool:
        """Whether it came to nothing not long ago."""
        try:
            age = time.time() - (self.path / (key + _FAILED)).lstat().st_mtime
        except OSError:
            return False
        return 0 <= age < BACK_OFF

    def _listed(self, key: str) -> Listed:
        try:
            template = self.find(key)
            if template is None:
                return Listed(key, "gone")
            used = os.fstat(template.memory).st_blocks * _BLOCK
            os.close(template.memory)
            header = json.loads((self.path / key / HEADER).read_bytes().partition(b"\n")[2])
        except (HostFailed, OSError, ValueError) as error:
            return Listed(key, error.cause if isinstance(error, HostFailed) else str(error))
        return Listed(key, "", template.size, used, header["made"], header["depends"])


def _encode(facts: Mapping[str, Any]) -> bytes:
    text = json.dumps(facts, sort_keys=True).encode()
    return hashlib.sha256(text).hexdigest().encode() + b"\n" + text


def _write(path: Path, data: bytes) -> None:
    path.touch(mode=0o600, exist_ok=False)
    path.write_bytes(data)


def _write_memory(path: Path, ram: int) -> tuple[int, int]:
    """Bytes in use, and their checksum."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(fd, os.fstat(ram).st_size)
        return memory.copy_used(ram, fd), memory.checksum(fd)
    finally:
        os.close(fd)


def _header(directory: int, key: str) -> dict[str, Any]:
    """:raises Refused: it is not what was written"""
    data = _read(directory, HEADER, _MAX_HEADER)
    digest, _, text = data.partition(b"\n")
    if hashlib.sha256(text).hexdigest().encode() != digest:
        raise Refused("read template", key, "its header does not fit its own digest")
    header: dict[str, Any] = json.loads(text)
    if header["key"] != key:
        raise Refused("read template", key, "it is another's")
    if not header.keys() >= _FACTS:
        raise Refused("read template", key, "it is of another format")
    return header


def _state(directory: int, header: Mapping[str, Any]) -> bytes:
    state = _read(directory, STATE, MAX_STATE)
    if len(state) != header["state"] or hashlib.sha256(state).hexdigest() != header["sha256"]:
        raise Refused("read template", header["key"], "its device state is not what was written")
    return state


def _memory(directory: int, header: Mapping[str, Any]) -> int:
    fd = _open(directory, MEMORY)
    status = os.fstat(fd)
    if status.st_size != header["memory"] or status.st_blocks * _BLOCK < header["used"]:
        os.close(fd)
        raise Refused("read template", header["key"], "its memory is not as large as was written")
    return fd


def _read(directory: int, name: str, limit: int) -> bytes:
    with open(_open(directory, name), "rb") as file:
        return file.read(limit + 1)


def _open(directory: int, name: str) -> int:
    """:raises Refused: it is missing, or somebody else's"""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except OSError as error:
        raise Refused("open template", name, error.strerror or "") from error
    try:
        _check_owner(Path(name), os.fstat(fd), stat.S_ISREG)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check_owner(path: Path, status: os.stat_result, kind: Any) -> None:
    """:raises Refused: it is not ours alone"""
    if not kind(status.st_mode):
        raise Refused("open template", str(path), "it is of another kind")
    if status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise Refused(
            "open template", str(path), f"owner {status.st_uid}, mode {status.st_mode & 0o7777:o}: not ours alone"
        )


def _locks(fd: int, path: Path) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return path.exists()


def _filesystem(path: Path) -> str:
    """The type of the file system that ``path`` is on, from the mount table: of all mounts above it the longest, and the last."""
    found, deepest = "", -1
    real = str(path.resolve())
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        point = before.split()[4].encode().decode("unicode_escape")
        if (real == point or real.startswith(point.rstrip("/") + "/")) and len(point) >= deepest:
            found, deepest = after.split()[0], len(point)
    return found
