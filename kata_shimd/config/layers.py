"""Reading TOML and laying one file over another, every value with its origin.

Owns the files: the search order, drop-ins, size limits, and the lines values stand on. A layer is flat: a mapping from the
path of a key to its value, so that laying one over another is a dict update, arrays replace and tables merge. Must never
happen: an exception other than a ``Problem`` for anything a file may hold.
"""

import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from kata_shimd.config.keys import PREFIXES
from kata_shimd.config.origin import Layer, Origin, Problem, Sourced

#: Where Kata looks, in its order (`kata.md` §8.1).
SEARCH: Final = (
    Path("/etc/kata-containers/configuration.toml"),
    Path("/usr/share/defaults/kata-containers/configuration.toml"),
    Path("/opt/kata/share/defaults/kata-containers/configuration.toml"),
)
MAX_FILE: Final = 1024 * 1024
MAX_DROP_INS: Final = 256

KeyPath = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class File:
    """A file as it was read."""

    path: Path
    layer: Layer
    data: bytes


@dataclass(slots=True)
class Layers:
    """What has been read so far: values by key path, the files in order, what was wrong with them."""

    values: dict[KeyPath, Sourced] = field(default_factory=dict)
    contents: list[File] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(file.path for file in self.contents)

    def add_file(self, path: Path, layer: Layer) -> None:
        """Lay a file over what is there. A file that cannot be read is a problem."""
        try:
            data = _contents(path)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            self.problems.append(Problem(Origin(layer, str(path)), "", f"cannot be read: {why}"))
            return
        self.add_read(File(path, layer, data))

    def add_read(self, file: File) -> None:
        """Lay a file over what is there that has been read already."""
        self.contents.append(file)
        self.add(file.data, Origin(file.layer, str(file.path)))

    def add(self, data: bytes, origin: Origin) -> None:
        """Lay TOML over what is there."""
        try:
            text, tree = parse(data)
        except ValueError as error:
            self.problems.append(Problem(origin, "", f"is not valid TOML: {error}"))
            return
        lines = key_lines(text)
        for path, value in leaves(tree):
            self.values[path] = Sourced(value, Origin(origin.layer, origin.where, lines.get(path)))


def read(files: Path | None, body: bytes) -> Layers:
    """The file (with its drop-ins) and the body of the options, in that order."""
    layers = Layers()
    if files:
        _read_file(layers, files)
    _add_body(layers, body)
    return layers


def read_again(files: Sequence[File], body: bytes) -> Layers:
    """What `read` came to when it read ``files``."""
    layers = Layers()
    for file in files:
        layers.add_read(file)
    _add_body(layers, body)
    return layers


def _add_body(layers: Layers, body: bytes) -> None:
    if body:
        layers.add(body, Origin(Layer.OPTION, "config_body"))


def find(config_path: Path | None, env_path: Path | None, search: Sequence[Path]) -> Path | None:
    """The file to read: from the options, else from the environment, else the first of ``search`` that exists."""
    return config_path or env_path or next((path for path in search if _exists(path)), None)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return True  # there, but not for us: reading it will say why


def _read_file(layers: Layers, path: Path) -> None:
    if not path.is_absolute():
        layers.problems.append(Problem(Origin(Layer.FILE, str(path)), "", "must be an absolute path"))
        return
    # Drop-ins lie beside the file a link points to, not beside the link (`kata.md` §8.1).
    resolved = _resolve(path)
    layers.add_file(resolved, Layer.FILE)
    for drop_in in _drop_ins(layers, resolved.parent / "config.d"):
        layers.add_file(drop_in, Layer.DROP_IN)


def _resolve(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, ValueError, RuntimeError):  # a loop of links, a NUL
        return path


def _contents(path: Path) -> bytes:
    """The bytes of a regular file, one too many when it is too large. A FIFO must not be waited for.

    Raises ``OSError``, or ``ValueError`` with a phrase.
    """
    with open(path, "rb", opener=_open) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("not a regular file")
        return file.read(MAX_FILE + 1)


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _drop_ins(layers: Layers, folder: Path) -> list[Path]:
    try:
        found = sorted(folder.iterdir(), key=lambda path: path.name)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        layers.problems.append(Problem(Origin(Layer.DROP_IN, str(folder)), "", f"cannot be read: {why}"))
        return []
    if len(found) > MAX_DROP_INS:
        layers.problems.append(Problem(Origin(Layer.DROP_IN, str(folder)), "", f"more than {MAX_DROP_INS} files"))
    return found[:MAX_DROP_INS]


def parse(data: bytes) -> tuple[str, dict[str, Any]]:
    """TOML text and tree, or ``ValueError`` with the parser's phrase."""
    if len(data) > MAX_FILE:
        raise ValueError(f"larger than {MAX_FILE} bytes")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8") from error
    import tomllib  # a pod without a file does not pay for it

    try:
        return text, tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def leaves(tree: Mapping[str, Any], above: KeyPath = ()) -> Iterator[tuple[KeyPath, object]]:
    """The values of a tree by path, going no deeper than known tables go: what is not known is one leaf."""
    for name, value in tree.items():
        path = (*above, name)
        if path in PREFIXES and isinstance(value, dict):
            yield from leaves(value, path)
        else:
            yield path, value


_PART: Final = r"""(?:[A-Za-z0-9_-]+|"[^"\n]*"|'[^'\n]*')"""
_DOTTED: Final = rf"{_PART}(?:[ \t]*\.[ \t]*{_PART})*"
_HEADER: Final = re.compile(rf"\s*\[[ \t]*({_DOTTED})[ \t]*\]")
_ASSIGNMENT: Final = re.compile(rf"\s*({_DOTTED})[ \t]*=")
_SPLIT: Final = re.compile(_PART)


def key_lines(text: str) -> dict[KeyPath, int]:
    """The line each key stands on, from a quick look at the text: enough for a message, never used for a value."""
    lines: dict[KeyPath, int] = {}
    table: KeyPath = ()
    for number, line in enumerate(text.split("\n"), 1):
        if len(line) > 4096:
            continue
        if header := _HEADER.match(line):
            table = _path(header[1])
            lines.setdefault(table, number)
        elif assignment := _ASSIGNMENT.match(line):
            lines.setdefault((*table, *_path(assignment[1])), number)
    return lines


def _path(dotted: str) -> KeyPath:
    return tuple(part.strip("\"'") for part in _SPLIT.findall(dotted))
