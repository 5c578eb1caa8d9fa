"""Mounts: mount(2) and its relatives, each recorded in the ledger before it is made.

Only making is here; undoing is the launcher's. Must never happen: a mount without its record, or a path of the guest's choosing
followed (targets are made by us in directories the guest cannot write).
"""

import ctypes
import errno
import os
import struct
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntFlag
from pathlib import Path
from typing import Final

from kata_shimd.errors import HostFailed, InvalidArgument
from kata_shimd.ledger import POD, Kind, Ledger
from kata_shimd.pod.values import Mount


class Flag(IntFlag):
    """linux/mount.h, MS_*."""

    RDONLY = 1
    NOSUID = 1 << 1
    NODEV = 1 << 2
    NOEXEC = 1 << 3
    SYNCHRONOUS = 1 << 4
    REMOUNT = 1 << 5
    MANDLOCK = 1 << 6
    DIRSYNC = 1 << 7
    NOSYMFOLLOW = 1 << 8
    NOATIME = 1 << 10
    NODIRATIME = 1 << 11
    BIND = 1 << 12
    REC = 1 << 14
    SILENT = 1 << 15
    UNBINDABLE = 1 << 17
    PRIVATE = 1 << 18
    SLAVE = 1 << 19
    SHARED = 1 << 20
    RELATIME = 1 << 21
    STRICTATIME = 1 << 24
    LAZYTIME = 1 << 25


_NONE: Final = Flag(0)

#: Options that set flags, those that clear them, and those that change propagation after the mount (containerd's table).
_SET: Final = {
    "ro": Flag.RDONLY,
    "nosuid": Flag.NOSUID,
    "nodev": Flag.NODEV,
    "noexec": Flag.NOEXEC,
    "sync": Flag.SYNCHRONOUS,
    "mand": Flag.MANDLOCK,
    "dirsync": Flag.DIRSYNC,
    "nosymfollow": Flag.NOSYMFOLLOW,
    "noatime": Flag.NOATIME,
    "nodiratime": Flag.NODIRATIME,
    "relatime": Flag.RELATIME,
    "strictatime": Flag.STRICTATIME,
    "lazytime": Flag.LAZYTIME,
    "bind": Flag.BIND,
    "rbind": Flag.BIND | Flag.REC,
    "remount": Flag.REMOUNT,
}
_CLEAR: Final = {
    "rw": Flag.RDONLY,
    "suid": Flag.NOSUID,
    "dev": Flag.NODEV,
    "exec": Flag.NOEXEC,
    "async": Flag.SYNCHRONOUS,
    "nomand": Flag.MANDLOCK,
    "symfollow": Flag.NOSYMFOLLOW,
    "atime": Flag.NOATIME,
    "diratime": Flag.NODIRATIME,
    "norelatime": Flag.RELATIME,
    "nostrictatime": Flag.STRICTATIME,
    "nolazytime": Flag.LAZYTIME,
    "defaults": _NONE,
}
_PROPAGATION: Final = {
    "private": Flag.PRIVATE,
    "rprivate": Flag.PRIVATE | Flag.REC,
    "shared": Flag.SHARED,
    "rshared": Flag.SHARED | Flag.REC,
    "slave": Flag.SLAVE,
    "rslave": Flag.SLAVE | Flag.REC,
    "unbindable": Flag.UNBINDABLE,
    "runbindable": Flag.UNBINDABLE | Flag.REC,
}

#: linux/mount.h, MOUNT_ATTR_*: the flags that a bind mount has of its own.
_ATTRIBUTES: Final = {
    Flag.RDONLY: 0x1,
    Flag.NOSUID: 0x2,
    Flag.NODEV: 0x4,
    Flag.NOEXEC: 0x8,
    Flag.RELATIME: 0x0,
    Flag.NOATIME: 0x10,
    Flag.STRICTATIME: 0x20,
    Flag.NODIRATIME: 0x80,
    Flag.NOSYMFOLLOW: 0x20_0000,
}
#: One of three values, so the bits of the others go.
_ATIME: Final = Flag.RELATIME | Flag.NOATIME | Flag.STRICTATIME
_ATTRIBUTES_ATIME: Final = 0x70

#: The kernel reads one page of data, terminated by a zero.
MAX_DATA: Final = os.sysconf("SC_PAGE_SIZE") - 1

_AT_FDCWD: Final = -100
_AT_SYMLINK_NOFOLLOW: Final = 0x100
_STATX_ATTR_MOUNT_ROOT: Final = 0x2000
_CLONE_FS: Final = 0x200

#: System calls since Linux 5.2 and 5.12; the same numbers on every architecture.
_SYS_OPEN_TREE: Final = 428
_SYS_MOVE_MOUNT: Final = 429
_SYS_MOUNT_SETATTR: Final = 442
_OPEN_TREE_CLONE: Final = 0x1
_AT_RECURSIVE: Final = 0x8000
_AT_EMPTY_PATH: Final = 0x1000
_MOVE_MOUNT_F_EMPTY_PATH: Final = 0x4

_HINTS: Final = {
    errno.EINVAL: "see the kernel's log",
    errno.EIO: "see the kernel's log",
    errno.ENOSYS: "the kernel is older than 5.12",
}

_libc: Final = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Options:
    """Mount options, taken apart: flags, propagation to set afterwards, and what the file system is told."""

    flags: Flag = _NONE
    propagation: tuple[Flag, ...] = ()
    data: tuple[str, ...] = ()

    @classmethod
    def parse(cls, words: Iterable[str]) -> "Options":
        """Later words override earlier ones; a word that is no flag goes to the file system.

        :raises InvalidArgument: an option of containerd's own that we do not carry out, or a comma inside of one
        """
        flags, propagation, data = _NONE, [], []
        for word in words:
            if word in _SET:
                flags |= _SET[word]
            elif word in _CLEAR:
                flags &= ~_CLEAR[word]
            elif word in _PROPAGATION:
                propagation.append(_PROPAGATION[word])
            elif word == "loop" or word.startswith("X-containerd."):
                raise InvalidArgument("read mount options", word, "not supported for a rootfs")
            else:
                data.append(word)
        return cls(flags, tuple(propagation), tuple(data))


def mount(ledger: Ledger, what: Mount, target: Path, *, scope: str = POD, needs: Iterable[int] = ()) -> int:
    """Mount ``what``, as containerd describes it, at ``target``.

    :param needs: records that may only be undone after this one
    :returns: the number of its record
    :raises HostFailed, InvalidArgument: it is not mounted, or not as asked; the record remains, and undoing it is harmless
    """
    options = Options.parse(what.options)
    record = ledger.plan(Kind.MOUNT, scope=scope, needs=needs, path=str(target))
    if what.type == "bind" or options.flags & Flag.BIND:
        _bind(what.source, target, options.flags, throughout="rro" in options.data)
    else:
        _mount_fs(what, target, options)
    for propagation in options.propagation:
        _call(None, target, None, propagation, None)
    return record


def bind(
    ledger: Ledger,
    source: Path,
    target: Path,
    *,
    readonly: bool = False,
    recursive: bool = True,
    scope: str = POD,
    needs: Iterable[int] = (),
) -> int:
    """Show ``source`` at ``target``, which exists and is of the same kind. Read-only holds for the top mount."""
    words = ("rbind" if recursive else "bind", "ro" if readonly else "rw")
    return mount(ledger, Mount("bind", str(source), words), target, scope=scope, needs=needs)


def pin(namespace: int, target: Path) -> None:
    """Bind the namespace that is open as ``namespace`` to the file ``target``. Its record, of kind `netns`, is the caller's."""
    _call(f"/proc/self/fd/{namespace}", target, None, Flag.BIND, None)


def make_shared(path: Path) -> None:
    """Mounts made below ``path`` from now on appear in copies of it, in other mount namespaces too."""
    _call(None, path, None, Flag.SHARED | Flag.REC, None)


def make_private(path: Path) -> None:
    """``path`` neither gives nor receives mounts."""
    _call(None, path, None, Flag.PRIVATE | Flag.REC, None)


def make_slave(path: Path) -> None:
    """``path`` receives mounts from what it was copied from and gives none back."""
    _call(None, path, None, Flag.SLAVE | Flag.REC, None)


def is_mount_point(path: Path) -> bool:
    """Whether something is mounted at ``path``, also where it is a bind of a directory beside it.

    :raises HostFailed: it cannot be looked at
    """
    buffer = ctypes.create_string_buffer(256)
    if _libc.statx(_AT_FDCWD, os.fsencode(path), _AT_SYMLINK_NOFOLLOW, 0, buffer) != 0:
        raise _failed("look at mount", str(path))
    # struct statx: stx_mask, stx_blksize (32 bits each), then stx_attributes.
    return bool(int.from_bytes(buffer.raw[8:16], "little") & _STATX_ATTR_MOUNT_ROOT)


def _bind(source: str, target: Path, flags: Flag, *, throughout: bool) -> None:
    """``throughout`` gives what is mounted below the source the flags as well."""
    own = [flag for flag in _ATTRIBUTES if flag in flags]
    if not own:
        _call(source, target, None, Flag.BIND | (flags & Flag.REC), None)
        return
    # A remount reaches only the mount it is done to, not those it was propagated to: the guest would be served a read-only volume
    # writable. So the mount is attached with its flags.
    where = f"{source} at {target}"
    fd = _syscall("mount bind", where, _SYS_OPEN_TREE, _AT_FDCWD, os.fsencode(source), _open_tree_flags(flags))
    try:
        attributes = _attributes(flags, own)
        empty = ctypes.c_char_p(b"")
        size = ctypes.c_size_t(len(attributes))
        reach = _AT_EMPTY_PATH | (_AT_RECURSIVE if throughout else 0)
        _syscall("set mount flags", where, _SYS_MOUNT_SETATTR, fd, empty, reach, attributes, size)
        to = os.fsencode(target)
        _syscall("mount bind", where, _SYS_MOVE_MOUNT, fd, empty, _AT_FDCWD, to, _MOVE_MOUNT_F_EMPTY_PATH)
    finally:
        os.close(fd)


def _open_tree_flags(flags: Flag) -> int:
    return _OPEN_TREE_CLONE | os.O_CLOEXEC | (_AT_RECURSIVE if Flag.REC in flags else 0)


def _attributes(flags: Flag, own: Iterable[Flag]) -> bytes:
    """struct mount_attr: what to set, what to clear, propagation and user namespace left alone."""
    wanted = 0
    for flag in own:
        wanted |= _ATTRIBUTES[flag]
    return struct.pack("=QQQQ", wanted, _ATTRIBUTES_ATIME if flags & _ATIME else 0, 0, 0)


def _syscall(step: str, obj: str, *words: object) -> int:
    result = int(_libc.syscall(*words))
    if result < 0:
        raise _failed(step, obj)
    return result


def _mount_fs(what: Mount, target: Path, options: Options) -> None:
    data = ",".join(options.data)
    if len(os.fsencode(data)) <= MAX_DATA:
        _call(what.source, target, what.type, options.flags, data)
        return
    directory, short = shortened(options.data)
    if len(os.fsencode(short)) > MAX_DATA or not directory:
        raise HostFailed(
            "mount", str(target), f"options of {len(data)} bytes, the kernel takes {MAX_DATA}",
            hint="an image of fewer layers",
        )  # fmt: skip
    _in_directory(directory, lambda: _call(what.source, target, what.type, options.flags, short))


def shortened(data: Iterable[str]) -> tuple[str, str]:
    """Make overlay's directories relative to one they share: many layers fit one page then.

    :returns: the directory to be in, empty when there is none to share, and the options
    """
    options = [word.partition("=")[::2] for word in data]
    paths = [path for key, value in options if key in _OVERLAY_PATHS for path in value.split(":")]
    if not paths or not all(path.startswith("/") for path in paths):
        return "", ",".join(data)
    common = os.path.commonpath(paths)
    return common, ",".join(_relative(key, value, common) for key, value in options)


_OVERLAY_PATHS: Final = ("lowerdir", "upperdir", "workdir")


def _relative(key: str, value: str, common: str) -> str:
    if key in _OVERLAY_PATHS:
        value = ":".join(os.path.relpath(path, common) for path in value.split(":"))
    return f"{key}={value}" if value else key


def _in_directory(directory: str, work: Callable[[], None]) -> None:
    """Run ``work`` in a thread whose working directory is its own: the daemon's is never changed."""
    failure: list[Exception] = []

    def run() -> None:
        try:
            if _libc.unshare(_CLONE_FS) != 0:
                raise _failed("unshare working directory", directory)
            os.chdir(directory)
            work()
        except (OSError, HostFailed) as error:
            failure.append(error)

    thread = threading.Thread(target=run, name="mount")
    thread.start()
    thread.join()
    for error in failure:
        if isinstance(error, OSError):
            raise HostFailed("mount", directory, error.strerror or "") from error
        raise error


def _call(source: str | None, target: Path, kind: str | None, flags: Flag, data: str | None) -> None:
    words = (_encoded(source), os.fsencode(target), _encoded(kind))
    if _libc.mount(*words, ctypes.c_ulong(flags), _encoded(data)) != 0:
        raise _failed(f"mount {kind or flags_name(flags)}", f"{source or ''} at {target}".strip())


def flags_name(flags: Flag) -> str:
    return "|".join(flag.name.lower() for flag in Flag if flag in flags and flag.name)


def _encoded(text: str | None) -> bytes | None:
    return None if text is None else os.fsencode(text)


def _failed(step: str, obj: str) -> HostFailed:
    number = ctypes.get_errno()
    return HostFailed(step, obj, os.strerror(number), hint=_HINTS.get(number, ""))
