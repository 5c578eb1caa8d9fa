"""What a guest is made of, read from ``manifest.toml``.

Unknown and missing keys are errors: a misspelt one must not vanish silently. A path never leaves the guest's root.
"""

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import PurePosixPath
from typing import Any, TypeVar

from kata_shimd.errors import InvalidArgument

FORMAT = 1
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelPart:
    package: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InitrdPart:
    """Module names in loading order; what they need is found out."""

    modules: tuple[str, ...]
    trivial_modules: tuple[str, ...]


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
    if kind is str and isinstance(value, str):
        return value
    if kind == tuple[str, ...] and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(_inside(item, where) for item in value)
    item_type = {Mapping[str, str]: str, Mapping[str, int]: int}.get(kind)
    if item_type and isinstance(value, dict) and all(isinstance(item, item_type) for item in value.values()):
        return {_inside(key, where): item for key, item in value.items()}
    raise InvalidArgument("read guest manifest", where, f"{value!r} is of the wrong type")


def _inside(path: str, where: str) -> str:
    """Names and paths alike must stay below the guest's root: they are joined to a directory of the host."""
    if not path or PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise InvalidArgument("read guest manifest", where, f"{path!r} is not a path below the guest's root")
    return path
