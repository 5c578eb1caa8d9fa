"""What a shim answered and told, with all that may differ from run to run taken out.

Pids become zero or not, times set or not; that they are the same wherever one process is spoken of is counted apart
(`Identities`). Real ids and paths become the sequence's symbolic ones.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

from kata_shimd import wire
from kata_shimd.api import runc_options, wkt

Value = Any
#: Never an answer of a shim: nothing came in time; the connection went.
NO_ANSWER: Final = "NO ANSWER"
LOST: Final = "LOST"
OK: Final = "OK"
NOT_FOUND: Final = "NOT_FOUND"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One answer: the status' name and the reply, ``None`` with an error. ``text`` is for people and never compared."""

    code: str
    reply: Mapping[str, Value] | None = None
    text: str = field(default="", compare=False)


@dataclass(slots=True)
class StepRecord:
    """The answers to a step's calls in their order, then State of every process of its containers, and what did not come."""

    outcomes: list[Outcome]
    states: dict[str, Outcome] = field(default_factory=dict)
    late: tuple[str, ...] = ()


@dataclass(slots=True)
class Record:
    """Everything one replay showed."""

    steps: list[StepRecord] = field(default_factory=list)
    #: The answers of held Waits, by the number of their step and call.
    waits: dict[tuple[int, int], Outcome] = field(default_factory=dict)
    #: Whether a container could be ended and deleted after the sequence.
    ends: dict[str, str] = field(default_factory=dict)
    #: By container: topic and fields, in order.
    events: dict[str, list[tuple[str, Mapping[str, Value]]]] = field(default_factory=dict)
    #: By what lived differently from some step on, and by container: how many of its events had been told before that step.
    told: dict[tuple[str, str], int] = field(default_factory=dict)
    #: By process and attempt: what came out of its stdout, and whether its end was seen.
    outputs: dict[str, tuple[str, bool]] = field(default_factory=dict)
    #: By process: how many different pids and exit times it had.
    identities: dict[str, tuple[int, int]] = field(default_factory=dict)
    #: Of a sequence on a pod of its own: whether the shim ended with its last container.
    shim_ended: bool = True
    #: Of a sequence on a shared pod: whether the shim was gone at the end.
    lost: bool = False


class Identities:
    """Which pids and times were told of each process."""

    def __init__(self) -> None:
        self._pids: defaultdict[str, set[int]] = defaultdict(set)
        self._times: defaultdict[str, set[int]] = defaultdict(set)

    def pid(self, target: str, pid: int) -> str:
        if pid:
            self._pids[target].add(pid)
        return "pid" if pid else "0"

    def time(self, target: str, time: wkt.Timestamp | None) -> str:
        # Go's zero time is the year 1.
        if time is None or time.seconds <= 0:
            return "unset"
        self._times[target].add(wire.nanoseconds(time))
        return "set"

    def counts(self) -> dict[str, tuple[int, int]]:
        """More than one of either is a process that changes its identity."""
        targets = self._pids.keys() | self._times.keys()
        return {target: (len(self._pids[target]), len(self._times[target])) for target in sorted(targets)}


class Reader:
    """Turns messages into comparable values. ``names`` maps real texts (ids, paths) to symbolic ones, longest first."""

    def __init__(self, identities: Identities, names: Mapping[str, str]) -> None:
        self._identities = identities
        self._names = names

    def read(self, message: Any, target: str) -> dict[str, Value]:
        """The fields of a reply or an event about ``target``."""
        present = (item.name for item in fields(message) if not item.name.startswith("_"))
        return self.read_fields({name: getattr(message, name) for name in present}, target)

    def read_fields(self, values: Mapping[str, Any], target: str) -> dict[str, Value]:
        return {name: self._value(name, value, target) for name, value in values.items()}

    def _value(self, name: str, value: Any, target: str) -> Value:
        match name:
            case "pid" | "task_pid":
                return self._identities.pid(target, value)
            case "shim_pid":
                return self._identities.pid("shim", value)
            case "exited_at":
                return self._identities.time(target, value)
            case "status":
                return value.name
            case "processes":
                return self._processes(value)
            case "stats":
                return None if value is None else value.type_url
            case "io":
                return None if value is None else self.read(value, target)
            case "rootfs":
                return [self.symbolic(mount.source) for mount in value]
        return self.symbolic(value) if isinstance(value, str) else value

    def symbolic(self, text: str) -> str:
        for real, name in self._names.items():
            text = text.replace(real, name)
        return text

    def _processes(self, infos: Iterable[Any]) -> Value:
        """runc lists every process of the container, we the ones that containerd knows: compare what both can say."""
        listed = list(infos)
        execs = [
            wire.unpack(info.info, runc_options.ProcessDetails).exec_id for info in listed if info.info is not None
        ]
        return {"empty": not listed, "zero": any(not info.pid for info in listed), "execs": sorted(execs)}
