"""Records the events containerd publishes, to check what was announced and in which order."""

import json
import threading
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from integration.harness import process
from integration.harness.ctr import Ctr
from integration.harness.scale import SCALE
from integration.harness.waiting import eventually


@dataclass(frozen=True, slots=True)
class Event:
    """One published event: ``/tasks/exit`` and its fields."""

    topic: str
    fields: dict[str, Any]

    @property
    def container(self) -> str:
        return str(self.fields.get("container_id", ""))


class Events:
    """A subscription to the namespace of ``ctr``; open it before what it should see."""

    def __init__(self, ctr: Ctr) -> None:
        self._ctr = ctr
        self._seen: list[Event] = []
        self._child = ctr.spawn("events")
        self._reader = threading.Thread(target=self._read, name="events", daemon=True)
        self._reader.start()
        self._await_subscription()

    def of(self, container_id: str) -> list[Event]:
        """What was published of this container's task and processes, in order."""
        return [event for event in list(self._seen) if event.container == container_id]

    def topics(self, container_id: str) -> list[str]:
        return [event.topic for event in self.of(container_id)]

    def until(self, container_id: str, topic: str, *, within: float = 20 * SCALE) -> list[Event]:
        """Wait for a topic; everything of the container up to now."""
        eventually(f"{topic} of {container_id}", lambda: topic in self.topics(container_id), within=within)
        return self.of(container_id)

    def close(self) -> None:
        self._child.terminate()
        self._reader.join()
        process.finish(self._child)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self) -> None:
        assert self._child.stdout is not None
        for raw in self._child.stdout:
            # date time zone-offset zone namespace topic json
            words = raw.decode(errors="replace").split(" ", 6)
            if len(words) == 7 and words[4] == self._ctr.namespace:
                self._seen.append(Event(words[5], json.loads(words[6])))

    def _await_subscription(self) -> None:
        """The client does not say when it is subscribed, so make events of no interest until one arrives."""
        sent = 0

        def announced() -> bool:
            nonlocal sent
            sent += 1
            self._ctr("image", "label", self._ctr.image, f"subscription={sent}").ok()
            return any(event.topic == "/images/update" for event in list(self._seen))

        eventually("the event subscription", announced, within=20 * SCALE)
