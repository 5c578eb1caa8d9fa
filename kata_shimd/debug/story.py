"""The last life of a pod as its journal tells it: the events in order, with the time since the first.

A sandbox id that is used again goes on in the same journal; what lies before the last start is another pod's story. Daemons that
took over from an earlier one belong to the same life. Must never happen: an exception for whatever a journal holds.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

#: A daemon's first word; with a field `LATER` there was one before it.
BEGINS: Final = "daemon"
LATER: Final = "later"
#: Events that are one container's own business; others that name one (its SIGKILL that ended the VM) are everyone's.
_OWN: Final = frozenset(
    {"abandon-failed", "abandoned", "created", "deleted", "exited", "kill-failed", "oom", "paused", "resumed"}
    | {"rpc", "started", "undo-failed"}
)


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

    def of_last_daemon(self) -> "Story":
        """What the last daemon has told; whatever befell those before it, another went on."""
        begin = max((number for number, entry in enumerate(self.entries) if entry.event == BEGINS), default=0)
        return Story(self.entries[begin:], self.live)

    def of(self, container: str) -> "Story":
        """What bears on one container: nothing of the others, and nothing that befell the pod once it had ended by itself."""
        entries = tuple(entry for entry in self.entries if not _of_another(entry, container))
        end = Story(entries, self.live).own_end(container)
        if end is None:
            return Story(entries, self.live)
        last = entries.index(end)
        own = (entry for number, entry in enumerate(entries) if number <= last or _names(entry, container))
        return Story(tuple(own), live=True)

    def own_end(self, container: str) -> Entry | None:
        """The exit of its init, unless it went with the VM. A name may be used again: the last container of it counts."""
        begin = max((n for n, entry in enumerate(self.entries) if _is(entry, "created", container)), default=0)
        life = self.entries[begin:]
        end = next((entry for entry in life if _is(entry, "exited", container) and not entry.text("exec")), None)
        return None if end is None or self.before(end, "vm-ended") else end


def _names(entry: Entry, container: str) -> bool:
    return entry.text("container") == container


def _is(entry: Entry, event: str, container: str) -> bool:
    return entry.event == event and _names(entry, container)


def _of_another(entry: Entry, container: str) -> bool:
    return entry.event in _OWN and entry.text("container") not in ("", container)


def tell(events: Iterable[Mapping[str, Any]], *, live: bool) -> Story:
    """The story of the last life in a journal, `journal.read`'s answer."""
    known = [event for event in events if _is_time(event.get("t")) and isinstance(event.get("event"), str)]
    life = last_life(known)
    begin = life[0]["t"] if life else 0
    return Story(tuple(_entry(event, begin) for event in life), live)


def _is_time(value: object) -> bool:
    """Nanoseconds since the epoch, within what 64 bits hold."""
    return isinstance(value, int) and 0 <= value < 1 << 63


def last_life(events: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """From the last daemon on that was a pod's first."""
    begins = [index for index, event in enumerate(events) if event["event"] == BEGINS and not event.get(LATER)]
    return events[begins[-1] :] if begins else events


def _entry(event: Mapping[str, Any], begin: int) -> Entry:
    fields = {key: value for key, value in event.items() if key not in ("t", "event", "head")}
    return Entry(event["t"], (event["t"] - begin) / 1e9, event["event"], fields)
