"""Composes the root image: chosen files of packages with the libraries they need, kernel modules, the agent, and a squashfs of it.

Owner, times and order are fixed: two images of the same inputs are equal. Nothing outside the staging directory is written.
"""

import os
import stat
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from kata_shimd.errors import HostFailed, NotFound
from kata_shimd.image.elf import is_elf, linkage
from kata_shimd.image.manifest import RootfsPart
from kata_shimd.image.modules import Module, ModuleTree, alias_lines, dep_lines
from kata_shimd.image.tool import run

AGENT = PurePosixPath("usr/sbin/kata-agent")
#: Directories that are links into ``usr`` in the guest, and may be real ones in a package.
MERGED = frozenset({"bin", "sbin", "lib", "lib64"})
#: Where the dynamic linker of the guest looks without a configuration.
LIBRARY_DIRECTORIES = (PurePosixPath("usr/lib/x86_64-linux-gnu"), PurePosixPath("usr/lib"))
MAX_LINKS = 16
#: Uncompressed: reading through the page cache of the host costs less than decompressing in the guest, above all where
#: instructions are emulated; the image is small and there is one per host.
SQUASHFS = ("-noI", "-noId", "-noD", "-noF", "-noX", "-no-xattrs", "-all-root", "-noappend", "-no-progress", "-quiet")
SQUASHFS_TIMES = ("-mkfs-time", "0", "-all-time", "0", "-root-mode", "0755")


class PackageTree:
    """Files of unpacked packages, found by their merged path whether or not the package has merged its own."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, path: PurePosixPath) -> Path | None:
        """The regular file at ``path`` after following links, which are relative to the guest's root."""
        for _ in range(MAX_LINKS):
            on_disk = self._on_disk(path)
            if on_disk is None:
                return None
            if not on_disk.is_symlink():
                return on_disk if on_disk.is_file() else None
            path = merged(_joined(path.parent, PurePosixPath(on_disk.readlink())))
        raise HostFailed("follow link", str(path), "too many levels")

    def get(self, path: PurePosixPath) -> Path:
        """Raises NotFound when no package has it."""
        if (found := self.find(path)) is None:
            raise NotFound("find file", str(path), "no chosen package has it", hint="see the manifest")
        return found

    def library(self, name: str, wanted_by: PurePosixPath) -> PurePosixPath:
        for directory in LIBRARY_DIRECTORIES:
            if self.find(directory / name):
                return directory / name
        raise NotFound("find library", name, f"{wanted_by} needs it, no chosen package has it")

    def _on_disk(self, path: PurePosixPath) -> Path | None:
        candidates = [self.root / path]
        if path.parts[:1] == ("usr",) and path.parts[1:2] and path.parts[1] in MERGED:
            candidates.append(self.root.joinpath(*path.parts[1:]))
        return next((candidate for candidate in candidates if os.path.lexists(candidate)), None)


def merged(path: PurePosixPath) -> PurePosixPath:
    """The path in a root whose ``bin``, ``sbin``, ``lib`` and ``lib64`` are links into ``usr``; relative to that root."""
    relative = path.relative_to("/") if path.is_absolute() else path
    return PurePosixPath("usr") / relative if relative.parts[:1] and relative.parts[0] in MERGED else relative


def with_libraries(paths: Iterable[PurePosixPath], tree: PackageTree) -> dict[PurePosixPath, Path]:
    """The files and, of every program among them, its dynamic linker and libraries: guest path → file to copy."""
    chosen: dict[PurePosixPath, Path] = {}
    queue = deque(merged(path) for path in paths)
    while queue:
        path = queue.popleft()
        if path in chosen:
            continue
        chosen[path] = tree.get(path)
        if is_elf(data := chosen[path].read_bytes()):
            needs = linkage(data, chosen[path])
            queue.extend(tree.library(name, path) for name in needs.needed)
            queue.extend([merged(PurePosixPath(needs.interpreter))] if needs.interpreter else [])
    return chosen


class Staging:
    """The guest's root under construction."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def skeleton(self, part: RootfsPart) -> None:
        for name in part.directories:
            (self.root / name).mkdir(parents=True, exist_ok=True)
        for name, target in part.links.items():
            self._parent(name).symlink_to(target)
        for name, text in part.text.items():
            self.write(PurePosixPath(name), text.encode())

    def write(self, path: PurePosixPath, data: bytes, mode: int = 0o644) -> None:
        target = self._parent(str(path))
        target.write_bytes(data)
        target.chmod(mode)

    def copy(self, files: dict[PurePosixPath, Path]) -> None:
        """Permission bits come along, set-id bits do not."""
        for path, source in files.items():
            self.write(path, source.read_bytes(), stat.S_IMODE(source.stat().st_mode) & 0o777)

    def modules(self, release: str, modules: Sequence[Module], tree: ModuleTree) -> None:
        """``/lib/modules/RELEASE`` as ``modprobe`` wants it."""
        base = PurePosixPath("usr/lib/modules") / release
        for module in modules:
            self.write(base / module.path, tree.data(module))
        self.write(base / "modules.dep", "".join(dep_lines(modules, tree.read)).encode())
        self.write(base / "modules.alias", "".join(alias_lines(modules)).encode())
        for name in ("modules.builtin", "modules.order"):
            self.write(base / name, (tree.root / name).read_bytes())

    def set_modes(self, modes: Mapping[str, int]) -> None:
        """Every directory 0755 whatever the umask was, then the exceptions."""
        for directory in (
            self.root,
            *(path for path in self.root.rglob("*") if path.is_dir() and not path.is_symlink()),
        ):
            directory.chmod(0o755)
        for name, mode in modes.items():
            (self.root / name).chmod(mode)

    def _parent(self, name: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def write_squashfs(staging: Path, image: Path) -> None:
    run("make root image", str(image), ["mksquashfs", str(staging), str(image), *SQUASHFS, *SQUASHFS_TIMES])


def _joined(directory: PurePosixPath, target: PurePosixPath) -> PurePosixPath:
    """A link's target seen from the root. A link that climbs above the root stays at it, as in a chroot."""
    parts: list[str] = []
    for part in (directory / target).parts:
        if part == "..":
            parts[-1:] = []
        elif part != "/":
            parts.append(part)
    return PurePosixPath(*parts)
