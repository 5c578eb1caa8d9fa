"""The one way to a configuration: files, the body of the options and the sandbox's annotations in, a frozen tree out.

Owns the order of the layers and the verdict. Order, weakest first (`kata.md` §1.6, §8.1, §9): built-in defaults; one file,
from the runtime options, else from ``KATA_CONF_FILE``, else the first that exists where Kata looks, else none; its drop-ins;
the body of the options; annotations. Must never happen: reading the environment (the caller hands it in), or an error other
than ``InvalidArgument`` for whatever the layers hold.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final

from kata_shimd.config.annotations import add_annotations
from kata_shimd.config.build import build
from kata_shimd.config.layers import SEARCH, File, Layers, find, read, read_again
from kata_shimd.config.model import Config
from kata_shimd.config.origin import Origin, Problem, Severity
from kata_shimd.errors import InvalidArgument

#: How many complaints an error repeats; the rest are counted.
MAX_SHOWN: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What a pod was told of its configuration: the arguments of `load`, for somebody else who is to come to the same."""

    config_path: Path | None = None
    config_body: bytes = b""
    env_path: Path | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)

    def load(self) -> "Loaded":
        return load(self.config_path, self.config_body, self.env_path, self.annotations)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """The configuration, where each value came from (by dotted key), what to warn of, the files read, in order, and from what
    all of it followed."""

    config: Config
    origin: Mapping[str, Origin]
    warnings: tuple[str, ...]
    contents: tuple[File, ...]
    told: Told = Told()

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(file.path for file in self.contents)


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """Like ``Loaded``, but with everything that was found, and without a configuration when that is too wrong."""

    config: Config | None
    origin: Mapping[str, Origin]
    problems: tuple[Problem, ...]
    contents: tuple[File, ...]

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(file.path for file in self.contents)


def load(
    config_path: Path | None,
    config_body: bytes,
    env_path: Path | None,
    annotations: Mapping[str, str],
    *,
    search: Sequence[Path] = SEARCH,
    recorded: Sequence[File] | None = None,
) -> Loaded:
    """The configuration of a pod. ``annotations`` are the sandbox's; other containers' must not be passed. With ``recorded`` these
    are the files, and none is read.

    Raises ``InvalidArgument`` with everything that is wrong, each with its file, line and key or its annotation.
    """
    found = examine(config_path, config_body, env_path, annotations, search=search, recorded=recorded)
    strict = found.config is not None and found.config.shimd.strict
    errors, warnings = _judge(found.problems, strict=strict)
    if errors or found.config is None:
        raise _refusal(errors or warnings, found.files)
    told = Told(config_path=config_path, config_body=config_body, env_path=env_path, annotations=annotations)
    return Loaded(config=found.config, origin=found.origin, warnings=warnings, contents=found.contents, told=told)


def examine(
    config_path: Path | None,
    config_body: bytes,
    env_path: Path | None,
    annotations: Mapping[str, str],
    *,
    search: Sequence[Path] = SEARCH,
    recorded: Sequence[File] | None = None,
) -> Examined:
    """As ``load``, but returns the problems instead of judging them; raises nothing."""
    if recorded is None:
        layers: Layers = read(find(config_path, env_path, search), config_body)
    else:
        layers = read_again(recorded, config_body)
    add_annotations(layers, annotations)
    config, origin = build(layers)
    return Examined(
        config=config,
        origin=MappingProxyType(origin),
        problems=tuple(layers.problems),
        contents=tuple(layers.contents),
    )


def defaults() -> Config:
    """The built-in defaults alone, whatever this machine has in its files."""
    return load(None, b"", None, {}, search=()).config


def _judge(problems: Sequence[Problem], *, strict: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Texts of the errors and of the warnings."""
    fatal = [is_error(problem, strict=strict) for problem in problems]
    errors = tuple(str(problem) for problem, bad in zip(problems, fatal, strict=True) if bad)
    warnings = tuple(str(problem) for problem, bad in zip(problems, fatal, strict=True) if not bad)
    return errors, warnings


def is_error(problem: Problem, *, strict: bool) -> bool:
    """Whether the problem stops a pod: unknown names do only when the configuration is strict."""
    return strict if problem.unknown else problem.severity is Severity.ERROR


def see_check(files: Sequence[Path]) -> str:
    """The words that send somebody to the whole list of complaints about the file that was read."""
    return f"see `{' '.join(('kata-shimd config check', *(shlex.quote(str(path)) for path in files[:1])))}`"


def _refusal(errors: Sequence[str], files: Sequence[Path]) -> InvalidArgument:
    shown = "; ".join(errors[:MAX_SHOWN])
    more = f"; and {len(errors) - MAX_SHOWN} more" if len(errors) > MAX_SHOWN else ""
    return InvalidArgument("load configuration", "", shown + more, hint=see_check(files))
