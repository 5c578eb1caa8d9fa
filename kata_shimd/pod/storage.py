"""What of a container's files is shared with the guest, and where it appears there (`kata.md` §6).

A pure plan: from the OCI spec and the rootfs mounts to a list of shares. The host carries it out.
"""

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from kata_shimd.errors import InvalidArgument
from kata_shimd.pod.values import GuestStorage, Mount

#: Where the guest mounts the shared directory (Kata's path, so that Kata's agent finds the same).
GUEST_SHARED: Final = PurePosixPath("/run/kata-containers/shared/containers")
GUEST_SHM: Final = PurePosixPath("/run/kata-containers/sandbox/shm")
SHM: Final = "/dev/shm"
#: Bytes, where the host made none.
DEFAULT_SHM: Final = 64 << 20

_READ_ONLY: Final = frozenset({"ro", "rro"})
_OCTAL: Final = re.compile(r"\\([0-7]{3})")
#: The guest makes these itself; a host directory there would show the host.
_GUEST_OWN: Final = ("/proc", "/sys", "/dev/pts", "/dev/mqueue")


@dataclass(frozen=True, slots=True)
class RootfsShare:
    """Mounts to put at the container's rootfs: containerd's, or one bind of ``path``."""

    mounts: tuple[Mount, ...]


@dataclass(frozen=True, slots=True)
class Share:
    """A host file or directory to bind into the shared directory, under ``name``.

    :param throughout: what is mounted below it is read-only as well
    """

    source: Path
    name: str
    readonly: bool
    throughout: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """Shares for the host, and the mounts of the OCI spec with their sources as the guest sees them."""

    rootfs: RootfsShare
    shares: tuple[Share, ...]
    mounts: tuple[dict[str, Any], ...]
    guest_rootfs: str


def plan(directory: str, bundle: Path, spec: dict[str, Any], rootfs: tuple[Mount, ...]) -> Plan:
    """Decide for the rootfs and every mount of ``spec``; ``directory`` is the container's, below the shared one.

    :raises InvalidArgument: no rootfs, or a mount's source does not exist
    """
    shares: list[Share] = []
    mounts: list[dict[str, Any]] = []
    for index, mount in enumerate(spec.get("mounts") or ()):
        share, rewritten = _plan_mount(directory, index, mount)
        mounts.append(rewritten)
        if share is not None:
            shares.append(share)
    return Plan(
        _plan_rootfs(bundle, spec, rootfs), tuple(shares), tuple(mounts), str(GUEST_SHARED / directory / "rootfs")
    )


def shm(spec: Mapping[str, Any]) -> GuestStorage:
    """The pod's shared memory, which its containers find at /dev/shm: as large as the one the host made for the pod."""
    sources = [str(mount.get("source", "")) for mount in spec.get("mounts") or () if mount.get("destination") == SHM]
    size = next((size for source in reversed(sources) if (size := _tmpfs_size(source))), DEFAULT_SHM)
    options = ("noexec", "nosuid", "nodev", "mode=1777", f"size={size}")
    return GuestStorage("ephemeral", "shm", "tmpfs", str(GUEST_SHM), options)


def _tmpfs_size(path: str) -> int:
    """Bytes of the file system mounted at ``path``; 0 when it is no mount point, so only a part of something larger."""
    if not os.path.ismount(path):
        return 0
    found = os.statvfs(path)
    return found.f_blocks * found.f_frsize


def _plan_rootfs(bundle: Path, spec: dict[str, Any], rootfs: tuple[Mount, ...]) -> RootfsShare:
    if rootfs:
        return RootfsShare(rootfs)
    path = Path((spec.get("root") or {}).get("path") or "rootfs")
    path = path if path.is_absolute() else bundle / path
    try:
        found = path.is_dir()
    except OSError as error:
        raise InvalidArgument("share rootfs", str(path), error.strerror or "cannot be looked at") from error
    if not found:
        raise InvalidArgument(
            "share rootfs", str(path), "no such directory", hint="give the task rootfs mounts, or an existing root.path"
        )
    return RootfsShare((Mount("bind", str(path), ("rbind", "rw")),))


def _plan_mount(directory: str, index: int, mount: dict[str, Any]) -> tuple[Share | None, dict[str, Any]]:
    destination, source = str(mount.get("destination", "")), str(mount.get("source", ""))
    options = [str(option) for option in mount.get("options") or ()]
    if not destination.startswith("/"):
        raise InvalidArgument("read config.json", "mounts", f"destination {destination!r} is not absolute")
    if not is_bind(mount) or _is_guest_own(destination):
        return None, mount
    if destination == SHM:
        return None, {**mount, "type": "bind", "source": str(GUEST_SHM), "options": ["rbind"]}
    if _is_device(source):
        return None, mount
    resolved = _resolve(source)
    name = f"{index}-{resolved.name or 'root'}"
    share = Share(resolved, name, readonly=not _READ_ONLY.isdisjoint(options), throughout="rro" in options)
    rewritten = {**mount, "type": "bind", "source": str(GUEST_SHARED / directory / "mounts" / name)}
    if _only_the_top_is_read_only(resolved, options):
        rewritten["options"] = [option for option in options if option != "ro"]
    return share, rewritten


def _only_the_top_is_read_only(source: Path, options: list[str]) -> bool:
    """Whether what is mounted below ``source`` stays writable, which is the host's to say.

    In the guest a volume is one file system, and read-only there is so throughout. The share's own mount on the host is read-only,
    and those below it are not: what is written is refused or not by them.
    """
    return {"rbind", "ro"} <= set(options) and "rro" not in options and _has_mounts_below(source)


def _has_mounts_below(directory: Path) -> bool:
    start = f"{directory}/".replace("//", "/")
    table = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    points = (line.split(" ", 5)[4] for line in table.split("\n") if line)
    return any(_unescaped(point).startswith(start) for point in points)


def _unescaped(point: str) -> str:
    """A path of mountinfo, where blanks are written in octal."""
    return _OCTAL.sub(lambda found: chr(int(found[1], 8)), point)


def is_bind(mount: dict[str, Any]) -> bool:
    return mount.get("type") == "bind" or bool({"bind", "rbind"} & set(mount.get("options") or ()))


def _is_guest_own(destination: str) -> bool:
    path = PurePosixPath(destination)
    return any(path == PurePosixPath(own) or PurePosixPath(own) in path.parents for own in _GUEST_OWN)


def _is_device(source: str) -> bool:
    """A device or socket below /dev stands for the guest's own (`kata.md` §6.4, 4)."""
    if not source.startswith("/dev/"):
        return False
    try:
        mode = Path(source).stat().st_mode
    except OSError:
        return True
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def _resolve(source: str) -> Path:
    try:
        return Path(source).resolve(strict=True)
    except (OSError, RuntimeError) as error:  # a loop of links is a RuntimeError before Python 3.13
        cause = error.strerror if isinstance(error, OSError) else None
        raise InvalidArgument("share mount", source, cause or "cannot be resolved") from error
