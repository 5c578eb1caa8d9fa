"""Writes an initramfs: the "newc" cpio format of the kernel's ``Documentation/driver-api/early-userspace/buffer-format``.

The bytes depend on the entries alone: times and owners are 0, inode numbers count up in the order given, and parent directories
must be given before what they hold (the kernel makes none).
"""

import stat
from collections.abc import Iterable
from dataclasses import dataclass

MAGIC = b"070701"
TRAILER = "TRAILER!!!"
#: The kernel reads the archive in blocks of this size when another one follows; padding to it keeps archives concatenable.
BLOCK = 512


@dataclass(frozen=True, slots=True)
class Entry:
    """One file. ``mode`` has type and permission bits, ``data`` is a file's content or a link's target."""

    path: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)

    @classmethod
    def directory(cls, path: str, mode: int = 0o755) -> "Entry":
        return cls(path, stat.S_IFDIR | mode)

    @classmethod
    def file(cls, path: str, data: bytes, mode: int = 0o644) -> "Entry":
        return cls(path, stat.S_IFREG | mode, data)

    @classmethod
    def character_device(cls, path: str, major: int, minor: int, mode: int = 0o600) -> "Entry":
        return cls(path, stat.S_IFCHR | mode, device=(major, minor))


def archive(entries: Iterable[Entry]) -> bytes:
    """The whole archive, trailer and padding included."""
    members = [member(entry, inode) for inode, entry in enumerate(entries, start=1)]
    whole = b"".join([*members, member(Entry(TRAILER, 0), 0)])
    return _pad(whole, BLOCK)


def member(entry: Entry, inode: int) -> bytes:
    """One header, name and content, each padded to 4 bytes: 13 fields of 8 hex digits after the magic."""
    name = entry.path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    owner = mtime = on_device = checksum = 0
    fields = (inode, entry.mode, owner, owner, links, mtime, len(entry.data), on_device, on_device, *entry.device)
    header = MAGIC + b"".join(b"%08X" % field for field in (*fields, len(name), checksum))
    return _pad(header + name, 4) + _pad(entry.data, 4)


def _pad(data: bytes, size: int) -> bytes:
    return data + bytes(-len(data) % size)
