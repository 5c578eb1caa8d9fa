"""What a row of the table of keys says, and the short constructors the tables are written with.

Owns the row's shape. A key either acts here, or it is known and accepted only at the values Kata gives it by default, because
a setting that is silently ignored is worse than one that is refused.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from kata_shimd.config.kinds import Kind

HYPERVISOR: Final = "io.katacontainers.config.hypervisor."
RUNTIME: Final = "io.katacontainers.config.runtime."
AGENT: Final = "io.katacontainers.config.agent."


class Status(StrEnum):
    SUPPORTED = "supported"
    ACCEPTED_AT_DEFAULT = "accepted at default"


@dataclass(frozen=True, slots=True)
class Absent:
    """Stands for "not in Kata's file"; falsy, and not to be confused with any TOML value."""

    def __bool__(self) -> bool:
        return False


ABSENT: Final = Absent()


def replaces(below: object, value: object) -> object:
    """The usual way of an annotation: its value takes the place of the one below."""
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotation:
    """A sandbox annotation that sets a key (`kata.md` §9.2).

    ``text`` turns it into a TOML value, ``combine`` joins that with the value below, ``globs`` names the key whose allow list
    a path must match, ``positive`` refuses 0.
    """

    name: str
    text: Callable[[str], object]
    combine: Callable[[Any, Any], object] = replaces
    globs: str = ""
    positive: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One key of the configuration file.

    ``default`` is ours as TOML would have it (``ABSENT``: worked out from others), ``kata`` what Kata's file ships and ``code``
    what Kata uses when the key is absent, both as TOML. ``field`` is the attribute in the model, empty when nothing stores it.
    ``accepts`` are further values that a held key may have; ``inside`` says that configuration itself reads the key.
    """

    table: str
    name: str
    kind: Kind
    default: object
    kata: object
    code: object
    status: Status
    meaning: str
    field: str = ""
    annotations: tuple[Annotation, ...] = ()
    accepts: tuple[object, ...] = ()
    inside: bool = False

    @property
    def path(self) -> tuple[str, ...]:
        return (*self.table.split("."), self.name)

    @property
    def dotted(self) -> str:
        return f"{self.table}.{self.name}"

    @property
    def accepted(self) -> tuple[object, ...]:
        """The TOML values that say nothing new while the key is not supported."""
        return tuple(value for value in (self.default, self.kata, self.code, *self.accepts) if value is not ABSENT)


@dataclass(frozen=True, slots=True)
class Table:
    """Writes the rows of one table; ``prefix`` is where its annotations live."""

    name: str
    prefix: str = ""

    def acts(
        self,
        name: str,
        kind: Kind,
        default: object,
        meaning: str,
        *,
        unit: str = "",
        kata: object = None,
        code: object = ABSENT,
        note: Annotation | str = "",
        inside: bool = False,
    ) -> Key:
        """A supported key. ``kata`` None: Kata ships the same default. ``inside``: read by configuration itself."""
        return Key(
            table=self.name,
            name=name,
            kind=kind,
            default=default,
            kata=default if kata is None else kata,
            code=code,
            status=Status.SUPPORTED,
            meaning=meaning,
            field=f"{name}_{unit}" if unit else name,
            annotations=self._notes(note, kind),
            inside=inside,
        )

    def held(
        self,
        name: str,
        kind: Kind,
        default: object,
        meaning: str,
        *,
        kata: object = None,
        code: object = ABSENT,
        note: Annotation | str = "",
        accepts: tuple[object, ...] = (),
        field: str = "",
    ) -> Key:
        """A key that is known, but does nothing here yet."""
        return Key(
            table=self.name,
            name=name,
            kind=kind,
            default=default,
            kata=default if kata is None else kata,
            code=code,
            status=Status.ACCEPTED_AT_DEFAULT,
            meaning=meaning,
            field=field,
            annotations=self._notes(note, kind),
            accepts=accepts,
        )

    def _notes(self, note: Annotation | str, kind: Kind) -> tuple[Annotation, ...]:
        if isinstance(note, Annotation):
            return (note,)
        return (Annotation(name=self.prefix + note, text=kind.text),) if note else ()


def refused(name: str, meaning: str, *empty: str) -> "LoneAnnotation":
    """An annotation without a key that we know and do not support."""
    return LoneAnnotation(name, meaning, ("", *empty))


@dataclass(frozen=True, slots=True)
class LoneAnnotation:
    """A configuration annotation that belongs to no key. Anything but ``accepted`` is refused."""

    name: str
    meaning: str
    accepted: tuple[str, ...]
