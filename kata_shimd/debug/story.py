"""The last life of a pod as its journal tells it: the events in order, with the time since the first.

A sandbox id that is used again goes on in the same journal; what lies before the last start is another pod's story. Must never
happen: an exception for whatever a journal holds.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

#: The daemon's first word.
BEGINS: Final = "daemon"


@dataclass(frozen=True, slots=True)
class Entry:
    """One event. ``after`` is seconds since the first; ``fields`` are all but time and name."""

    at_ns: int
    after: float
    event: str
    fields: Mapping[str, Any]

    def text(self, field: str) -> str:
        """A field as text; empty when it is not there."""
        value = self.fields.get(field, "")
        return value if isinstance(value, str) else str(value)


@dataclass(frozen=True, slots=True)
class Story:
    """Everything that is known of one life. ``live`` says whether the pod's daemon lives now."""

    entries: tuple[Entry, ...]
    live: bool

    def all(self, *events: str) -> Iterator[Entry]:
        return (entry for entry in self.entries if entry.event in events)

    def first(self, *events: str) -> Entry | None:
        return next(self.all(*events), None)

    def last(self, *events: str) -> Entry | None:
        return next((entry for entry in reversed(self.entries) if entry.event in events), None)

    def before(self, end: Entry, *events: str) -> Entry | None:
        """The last of ``events`` that came before ``end``."""
        earlier = self.entries[: self.entries.index(end)]
        return next((entry for entry in reversed(earlier) if entry.event in events), None)


def tell(events: Iterable[Mapping[str, Any]], *, live: bool) -> Story:
    """The story of the last life in a journal, `journal.read`'s answer."""
    known = [event for event in events if _is_time(event.get("t")) and isinstance(event.get("event"), str)]
    life = _last_life(known)
    begin = life[0]["t"] if life else 0
    return Story(tuple(_entry(event, begin) for event in life), live)


def _is_time(value: object) -> bool:
    """Nanoseconds since the epoch, within what 64 bits hold."""
    return isinstance(value, int) and 0 <= value < 1 << 63


def _last_life(events: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    begins = [index for index, event in enumerate(events) if event["event"] == BEGINS]
    return events[begins[-1] :] if begins else events


def _entry(event: Mapping[str, Any], begin: int) -> Entry:
    fields = {key: value for key, value in event.items() if key not in ("t", "event", "head")}
    return Entry(event["t"], (event["t"] - begin) / 1e9, event["event"], fields)
