"""Kernel modules: what each needs, in which order to load them, and the index files ``modprobe`` reads.

Truth is each module's own ``.modinfo`` section: the kernel's package ships no ``modules.dep``, its post-install step makes one.
"""

import fnmatch
import gzip
import lzma
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from kata_shimd.errors import NotFound
from kata_shimd.image.elf import section
from kata_shimd.image.tool import run

SIGNATURE_MAGIC = b"~Module signature appended~\n"
#: ``struct module_signature``: algorithm, hash, id type, two lengths and padding, then the signature's length, big endian.
SIGNATURE_LENGTH = struct.Struct(">8xI")


#: By the suffix of a module's file.
_DECOMPRESSORS: Mapping[str, Callable[[bytes], bytes]] = {
    ".ko": bytes,
    ".xz": lzma.decompress,
    ".gz": gzip.decompress,
    ".zst": lambda data: run("decompress", "kernel module", ["zstd", "-dc"], data=data),
}


@dataclass(frozen=True, slots=True)
class Module:
    """One module: ``path`` below ``/lib/modules/RELEASE``, direct dependencies by name, what device or name it answers to."""

    name: str
    path: PurePosixPath
    depends: tuple[str, ...]
    aliases: tuple[str, ...]

    @classmethod
    def parse(cls, data: bytes, path: PurePosixPath) -> "Module":
        fields = [entry.partition(b"=") for entry in section(data, b".modinfo", Path(path)).split(b"\0") if entry]
        values = [(key.decode(), value.decode(errors="replace")) for key, _, value in fields]
        depends = next((value for key, value in values if key == "depends"), "")
        aliases = tuple(value for key, value in values if key == "alias")
        return cls(module_name(path), path, tuple(map(normal, filter(None, depends.split(",")))), aliases)


class ModuleTree:
    """The modules below ``root`` (``/lib/modules/RELEASE`` of an unpacked kernel package), parsed when asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        files = sorted(path for path in root.glob("kernel/**/*.ko*") if _uncompressed(path).suffix == ".ko")
        self._paths = {module_name(PurePosixPath(path)): path for path in files}
        builtin = (root / "modules.builtin").read_text().split()
        self._builtin = {module_name(PurePosixPath(line)) for line in builtin}
        self._parsed: dict[str, Module] = {}

    def read(self, name: str) -> Module | None:
        """The module, or None when it is part of the kernel itself.

        Raises NotFound when it is neither.
        """
        name = normal(name)
        if name in self._builtin:
            return None
        if name not in self._parsed:
            self._parsed[name] = self._parse(name)
        return self._parsed[name]

    def matching(self, patterns: Iterable[str]) -> list[str]:
        """Names of the modules whose path below ``root`` matches a shell pattern (``*`` crosses directories), sorted.

        Raises NotFound for a pattern that matches nothing: the kernel's layout changed, and nobody would notice.
        """
        chosen: set[str] = set()
        for pattern in patterns:
            found = {name for name, path in self._paths.items() if fnmatch.fnmatch(str(self._place(path)), pattern)}
            if not found:
                raise NotFound("choose kernel modules", pattern, f"matches nothing below {self.root}")
            chosen |= found
        return sorted(chosen)

    def data(self, module: Module) -> bytes:
        """The module itself, whether or not the package has it compressed."""
        path = self._paths[module.name]
        return _DECOMPRESSORS[path.suffix](path.read_bytes())

    def _parse(self, name: str) -> Module:
        if (path := self._paths.get(name)) is None:
            hint = "its name may have changed with the kernel; see the manifest"
            raise NotFound("find kernel module", name, f"not below {self.root}", hint=hint)
        return Module.parse(_DECOMPRESSORS[path.suffix](path.read_bytes()), self._place(path))

    def _place(self, path: Path) -> PurePosixPath:
        """Where the guest has it: compressed by nothing but the image's own file system."""
        return PurePosixPath(_uncompressed(path).relative_to(self.root))


def load_order(names: Iterable[str], read: Callable[[str], Module | None]) -> list[Module]:
    """The named modules and all they need, each after what it needs and otherwise in the order asked for."""
    order: dict[str, Module] = {}

    def add(name: str) -> None:
        module = read(name)
        if module is None or module.name in order:
            return
        for dependency in module.depends:
            add(dependency)
        order[module.name] = module

    for name in names:
        add(name)
    return list(order.values())


def boot_lines(
    always: Iterable[str], on_device: Mapping[str, Iterable[str]], read: Callable[[str], Module | None]
) -> dict[Module, tuple[str, ...]]:
    """What an initrd loads, in order: each module with the device patterns of which one must be there; none: always.

    ``on_device``: a driver and what else is used through it. Its dependencies wait for its devices too, unless always loaded.
    """
    order: dict[Module, tuple[str, ...]] = dict.fromkeys(load_order(always, read), ())
    unconditional = set(order)
    for driver, users in on_device.items():
        module = read(driver)
        patterns = tuple(alias for alias in module.aliases if ":" in alias) if module else ()
        for needed in load_order([driver, *users], read):
            if needed not in unconditional:
                order[needed] = (*order.get(needed, ()), *patterns)
    return order


def unsigned(data: bytes) -> bytes:
    """The module without the signature appended to it (``scripts/sign-file.c``: signature, 12 bytes, a magic string).

    The package's hash has been checked, and checking each module again costs an emulated guest 5 to 30 ms.
    """
    if not data.endswith(SIGNATURE_MAGIC):
        return data
    end = len(data) - len(SIGNATURE_MAGIC)
    (length,) = SIGNATURE_LENGTH.unpack(data[end - SIGNATURE_LENGTH.size : end])
    return data[: end - SIGNATURE_LENGTH.size - length]


def dep_lines(modules: Iterable[Module], read: Callable[[str], Module | None]) -> Iterator[str]:
    """``modules.dep``: each module with everything it needs, what must be loaded first standing last."""
    for module in modules:
        needs = [needed.path for needed in load_order([module.name], read) if needed != module]
        yield f"{module.path}:{''.join(f' {path}' for path in reversed(needs))}\n"


def alias_lines(modules: Iterable[Module]) -> Iterator[str]:
    """``modules.alias``."""
    for module in modules:
        for alias in module.aliases:
            yield f"alias {alias} {module.name}\n"


def _uncompressed(path: Path) -> Path:
    return path.with_suffix("") if path.suffix in _DECOMPRESSORS and path.suffix != ".ko" else path


def module_name(path: PurePosixPath) -> str:
    return normal(path.name.partition(".")[0])


def normal(name: str) -> str:
    """Modules are known by one spelling, files by either: ``-`` and ``_`` are the same."""
    return name.strip().replace("-", "_")
