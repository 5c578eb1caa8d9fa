"""What a guest is made of, read from ``manifest.toml``.

Unknown and missing keys are errors: a misspelt one must not vanish silently. A path never leaves the guest's root.
"""

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import PurePosixPath
from typing import Any, TypeVar, get_args, get_origin

from kata_shimd.errors import InvalidArgument

FORMAT = 1
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelPart:
    """``unpack``: the ELF kernel out of the package's bzImage, instead of that."""

    package: str
    unpack: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class InitrdPart:
    """Module names in loading order; what they need is found out. ``device_modules`` wait for a device of their own."""

    modules: tuple[str, ...]
    trivial_modules: tuple[str, ...]
    device_modules: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RootfsPart:
    """All paths are relative to the guest's root and merged (``usr/bin``); ``modes`` are of directories."""

    packages: tuple[str, ...]
    files: tuple[str, ...]
    modules: tuple[str, ...]
    directories: tuple[str, ...]
    modes: Mapping[str, int]
    links: Mapping[str, str]
    text: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    architecture: str
    kernel: KernelPart
    initrd: InitrdPart
    rootfs: RootfsPart


def default_text() -> str:
    return resources.files(__package__).joinpath("manifest.toml").read_text()


def parse(text: str, name: str = "manifest.toml") -> Manifest:
    """Raises InvalidArgument, saying which key."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidArgument("read guest manifest", name, str(error)) from error
    if (given := document.pop("format", None)) != FORMAT:
        raise InvalidArgument("read guest manifest", name, f"format is {given!r}, this builder knows {FORMAT}")
    return _table(Manifest, document, name, {"kernel": KernelPart, "initrd": InitrdPart, "rootfs": RootfsPart})


def _table(cls: Callable[..., T], document: Any, where: str, parts: Mapping[str, Callable[..., Any]]) -> T:
    """A frozen dataclass of a TOML table with exactly its keys."""
    expected = {field.name: field for field in fields(cls)}  # type: ignore[arg-type]
    if not isinstance(document, dict) or document.keys() != expected.keys():
        given = document.keys() if isinstance(document, dict) else {"no table"}
        wrong = ", ".join(sorted(given ^ expected.keys()))
        raise InvalidArgument("read guest manifest", where, f"unknown or missing: {wrong}")
    values = {}
    for key, value in document.items():
        place = f"{where}: {key}"
        values[key] = _table(parts[key], value, place, {}) if key in parts else _value(expected[key].type, value, place)
    return cls(**values)


def _value(kind: Any, value: Any, where: str) -> Any:
    """``value`` as the field's type, which is one of those below; names and paths in it stay inside the guest."""
    if get_origin(kind) is Mapping and isinstance(value, dict):
        item = get_args(kind)[1]
        return {_inside(key, where): _value(item, each, f"{where}: {key}") for key, each in value.items()}
    if kind == tuple[str, ...] and isinstance(value, list):
        return tuple(_inside(_value(str, each, where), where) for each in value)
    if kind in (str, int, bool) and type(value) is kind:  # a bool is no int here
        return value
    raise InvalidArgument("read guest manifest", where, f"{value!r} is of the wrong type")


def _inside(path: str, where: str) -> str:
    """Names and paths alike must stay below the guest's root: they are joined to a directory of the host."""
    if not path or PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise InvalidArgument("read guest manifest", where, f"{path!r} is not a path below the guest's root")
    return path
