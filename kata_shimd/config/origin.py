"""Where a value came from, and what is wrong with one.

Owns the two small types that every step of loading passes on. Must never happen: a complaint that does not name its place.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Layer(StrEnum):
    """The layers of configuration, weakest first."""

    DEFAULT = "default"
    FILE = "file"
    DROP_IN = "drop-in"
    OPTION = "option"
    ANNOTATION = "annotation"


@dataclass(frozen=True, slots=True)
class Origin:
    """The layer, the file or annotation within it, and the line where that is known."""

    layer: Layer
    where: str = ""
    line: int | None = None

    def __str__(self) -> str:
        place = f"{self.where}:{self.line}" if self.line else self.where
        if self.layer is Layer.FILE:
            return place
        return f"{self.layer} {place}" if place else str(self.layer)


DEFAULT: Final = Origin(Layer.DEFAULT)


@dataclass(frozen=True, slots=True)
class Sourced:
    """A raw value (as TOML has it) and its origin."""

    value: object
    origin: Origin


class Severity(StrEnum):
    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Problem:
    """One complaint: what (``hypervisor.qemu.path``, an annotation, or empty), where, why, and what to do.

    ``unknown`` marks a name that nobody knows: a warning when a pod starts, an error when the configuration is strict.
    """

    origin: Origin
    name: str
    what: str
    hint: str = ""
    severity: Severity = Severity.ERROR
    unknown: bool = False

    def __str__(self) -> str:
        named = self.name if self.name and self.name not in str(self.origin) else ""
        text = ": ".join(part for part in (str(self.origin), named, self.what) if part)
        return f"{text}; {self.hint}" if self.hint else text
