"""The kinds of value a key can have: how each is read from TOML, from an annotation's text, and written back.

Owns parsing of single values. A parser gets whatever TOML held and returns the typed value or raises ``ValueError`` with a
phrase that reads well after "key: ". Must never happen: a value with a control character in it (values end up in argument
vectors and kernel command lines), or a bool taken for a number.
"""

import fnmatch
import json
import math
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, Final

U32: Final = 2**32 - 1
#: Longest time anyone may configure, so that arithmetic on deadlines stays finite: a day.
MAX_SECONDS: Final = 86_400
MAX_TEXT: Final = 64 * 1024
#: Control characters, and halves of surrogate pairs, which are no characters at all.
_UNPRINTABLE: Final = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")

#: What to call a value of TOML in a message.
TYPE_NAMES: Final = {
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    str: "a string",
    list: "an array",
    dict: "a table",
}


@dataclass(frozen=True, slots=True)
class Kind:
    """``parse`` reads a TOML value, ``text`` turns an annotation's text into a TOML value, ``dump`` goes back to TOML."""

    name: str
    parse: Callable[[object], Any]
    text: Callable[[str], object]
    dump: Callable[[Any], object] = lambda value: value


def describe(value: object) -> str:
    """What ``value`` is, for an error message."""
    return TYPE_NAMES.get(type(value), f"a {type(value).__name__}")


def printable(text: str) -> str:
    """``text`` unless it is too long or holds control characters."""
    if len(text) > MAX_TEXT:
        raise ValueError(f"longer than {MAX_TEXT} characters")
    if _UNPRINTABLE.search(text):
        raise ValueError("contains a control character")
    return text


def parse_str(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"must be a string, not {describe(value)}")
    return printable(value)


def parse_bool(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false, not {describe(value)}")
    return value


def parse_path(value: object) -> Path:
    text = parse_str(value)
    if not text.startswith("/"):
        raise ValueError("must be an absolute path")
    return Path(text)


def parse_strings(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError(f"must be an array of strings, not {describe(value)}")
    return tuple(parse_str(item) for item in value)


def parse_words(value: object) -> tuple[str, ...]:
    return tuple(parse_str(value).split())


def parse_regexes(value: object) -> tuple[str, ...]:
    patterns = parse_strings(value)
    for pattern in patterns:
        compile_pattern(pattern)
    return patterns


@lru_cache
def compile_pattern(pattern: str) -> re.Pattern[str]:
    """A regular expression, or ``ValueError``."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "possible nested set" and the like mean something else in Go
            return re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"{pattern!r} is no regular expression ({error})") from error


def parse_read_only_paths(value: object) -> tuple[Path, ...]:
    """Host paths, each with an optional ``:ro``; ``:rw``, which runtime-rs knows, is not supported."""
    texts = parse_strings(value)
    if any(text.endswith(":rw") for text in texts):
        raise ValueError("writable bind mounts are not supported")
    return tuple(parse_path(text.removesuffix(":ro")) for text in texts)


def parse_tables(value: object) -> tuple[Any, ...]:
    """An array of tables; kept as TOML has it (only the empty one is supported so far)."""
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ValueError("must be an array of tables")
    return tuple(value)


def integer(low: int = 0, high: int = U32, *, power_of_two: bool = False) -> Callable[[object], int]:
    """A parser of integers from ``low`` to ``high``."""

    def parse(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"must be an integer, not {describe(value)}")
        if not low <= value <= high:
            raise ValueError(f"{value} is not between {low} and {high}")
        if power_of_two and value & (value - 1):
            raise ValueError(f"{value} is not a power of two")
        return value

    return parse


def number(low: float, high: float) -> Callable[[object], float]:
    """A parser of finite numbers, whole or not, from ``low`` to ``high``."""

    def parse(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"must be a number, not {describe(value)}")
        if not (math.isfinite(value) and low <= value <= high):
            raise ValueError(f"{value} is not between {low:g} and {high:g}")
        return float(value)

    return parse


#: What Go's ParseBool takes (`kata.md` §9.1), and nothing else.
GO_BOOLS: Final = dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True) | dict.fromkeys(
    ("0", "f", "F", "FALSE", "false", "False"), False
)


def go_bool(text: str) -> bool:
    if text not in GO_BOOLS:
        raise ValueError(f"{shorten(text)} is not a boolean")
    return GO_BOOLS[text]


def go_uint(text: str) -> int:
    """Decimal digits only: no sign, no blanks, no underscores, at most 64 bits."""
    if not re.fullmatch(r"[0-9]{1,20}", text) or int(text) >= 2**64:
        raise ValueError(f"{shorten(text)} is not an unsigned integer")
    return int(text)


def go_float(text: str) -> float:
    if not re.fullmatch(r"[+-]?[0-9]{1,20}(\.[0-9]{1,20})?", text):
        raise ValueError(f"{shorten(text)} is not a number")
    return float(text)


def json_strings(text: str) -> list[str]:
    """A JSON array of strings (the extra arguments of virtiofsd)."""
    try:
        value = json.loads(printable(text))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{shorten(text)} is not a JSON array of strings") from error
    return list(parse_strings(value))


def semicolons(text: str) -> list[str]:
    """``mod a=1; mod2`` → one entry per module."""
    return [entry.strip() for entry in text.split(";") if entry.strip()]


def excerpt(text: str, limit: int = 64) -> str:
    """The beginning of a text that somebody else wrote, safe to print."""
    return repr(text if len(text) <= limit else text[: limit - 3] + "...")[1:-1]


def shorten(text: str) -> str:
    """The same, quoted."""
    return f"'{excerpt(text)}'"


def no_text(text: str) -> object:
    raise ValueError("cannot be set by an annotation")


def choice(enum: type[StrEnum], known: tuple[str, ...] = (), aliases: dict[str, str] | None = None) -> Kind:
    """One of ``enum``. ``known`` are values that Kata has and we do not support; ``aliases`` other spellings."""
    names = ", ".join(f'"{member.value}"' for member in enum)

    def parse(value: object) -> StrEnum:
        text = parse_str(value)
        text = (aliases or {}).get(text, text)
        if text in known:
            raise ValueError(f'"{text}" is not supported here, only {names}')
        if text not in {member.value for member in enum}:
            raise ValueError(f"{shorten(text)} is none of {names}")
        return enum(text)

    return Kind(f"one of {names}", parse, str, str)


def _strings(value: tuple[object, ...]) -> list[str]:
    return [str(item) for item in value]


def _path_or_search_list(paths: tuple[Path, ...]) -> object:
    """A configured path is one; more are places to look at, which no file can say."""
    return str(paths[0]) if len(paths) == 1 else _strings(paths)


BOOL: Final = Kind("boolean", parse_bool, go_bool)
STR: Final = Kind("string", parse_str, str)
PATH: Final = Kind("absolute path", parse_path, str, str)
STRINGS: Final = Kind("array of strings", parse_strings, str.split, list)
JSON_STRINGS: Final = Kind("array of strings", parse_strings, json_strings, list)
MODULES: Final = Kind("array of strings", parse_strings, semicolons, list)
GLOBS: Final = Kind("array of globs", parse_strings, no_text, list)
REGEXES: Final = Kind("array of regular expressions", parse_regexes, no_text, list)
WORDS: Final = Kind("words", parse_words, str, " ".join)
READ_ONLY_PATHS: Final = Kind("array of absolute paths", parse_read_only_paths, no_text, _strings)
ONE_PATH: Final = Kind("absolute path", lambda value: (parse_path(value),), str, _path_or_search_list)
TABLES: Final = Kind("array of tables", parse_tables, no_text, list)
UINT: Final = Kind("integer", integer(), go_uint)
UINT64: Final = Kind("integer", integer(high=2**63 - 1), go_uint)
INT64: Final = Kind("integer", integer(-(2**63), 2**63 - 1), go_uint)
SECONDS: Final = Kind("seconds", number(0.01, MAX_SECONDS), go_uint)
WHOLE_SECONDS: Final = Kind("seconds", integer(1, MAX_SECONDS), go_uint)


def between(low: int, high: int = U32, *, unit: str = "integer", power_of_two: bool = False) -> Kind:
    """An integer within bounds."""
    bounds = f"{low} to {high}" if high < U32 else f"at least {low}"
    name = f"{unit}, {bounds}" + (", a power of two" if power_of_two else "")
    return Kind(name, integer(low, high, power_of_two=power_of_two), go_uint)


def path_in_globs(path: str, globs: tuple[str, ...]) -> bool:
    """Whether an absolute, normalised ``path`` matches one of ``globs``; ``*`` does not cross a slash, as in Go."""
    parts = PurePosixPath(path).parts
    if not path.startswith("/") or ".." in parts or str(PurePosixPath(path)) != path:
        return False
    return any(_glob(parts, PurePosixPath(glob).parts) for glob in globs)


def _glob(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    pairs = zip(parts, pattern, strict=False)
    return len(parts) == len(pattern) and all(fnmatch.fnmatchcase(part, glob) for part, glob in pairs)
