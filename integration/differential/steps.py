"""What is replayed, as data: a sequence of steps, each of one call or of several issued at once, and what to wait for.

Names are symbolic, so that one sequence can run on any pod: a container is ``c0``, an exec ``e0``; a name that begins with ``=``
is taken literally (unknown and malformed ids), ``@`` as an exec id is the container's own id.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Self


class Rpc(StrEnum):
    """The Task service's methods by their name on the wire; END is the driver's own."""

    CREATE = "Create"
    START = "Start"
    DELETE = "Delete"
    EXEC = "Exec"
    KILL = "Kill"
    PAUSE = "Pause"
    RESUME = "Resume"
    STATE = "State"
    WAIT = "Wait"
    PIDS = "Pids"
    STATS = "Stats"
    UPDATE = "Update"
    CONNECT = "Connect"
    CLOSE_IO = "CloseIO"
    RESIZE_PTY = "ResizePty"
    CHECKPOINT = "Checkpoint"
    SHUTDOWN = "Shutdown"
    #: Not an RPC: whatever state the container is in, end and delete it. What that takes is not compared.
    END = "(end)"


class Program(StrEnum):
    """What a process runs. All but EXIT write ``up`` when they are ready for signals."""

    #: Dies of a signal, unless it is the init of a pid namespace, which ignores all but SIGKILL.
    SLEEP = "sleep"
    #: Answers SIGTERM with exit code 43.
    TRAP = "trap"
    #: Writes ``out`` and ends with 3 at once.
    EXIT = "exit"
    #: Copies stdin to stdout until its end.
    CAT = "cat"
    #: A file that is not there.
    MISSING = "missing"
    #: Ends with 5 and leaves a child that holds its output open.
    ORPHAN = "orphan"


_LOOP: Final = "while :; do sleep 86400 >/dev/null 2>&1 & wait; done"
ARGV: Final[Mapping[Program, tuple[str, ...]]] = {
    Program.SLEEP: ("sh", "-c", "echo up; exec sleep 86400"),
    Program.TRAP: ("sh", "-c", f"trap 'kill $!; exit 43' TERM; echo up; {_LOOP}"),
    Program.EXIT: ("sh", "-c", "echo out; exit 3"),
    Program.CAT: ("sh", "-c", "echo up; exec cat"),
    Program.MISSING: ("/no/such/program",),
    Program.ORPHAN: ("sh", "-c", "sleep 86400 & exit 5"),
}


@dataclass(frozen=True, slots=True)
class Call:
    """One RPC. What a field means depends on the RPC; a field left alone is not in the JSON."""

    rpc: Rpc
    container: str = "c0"
    process: str = ""
    #: Create, Exec.
    program: Program | None = None
    terminal: bool = False
    stdin: bool = False
    #: Create, Exec, Update: what is wrong with the request, a key of `shim.FLAWS`.
    flaw: str = ""
    #: Kill.
    signal: int = 0
    everyone: bool = False
    #: Wait: go on with the next step, and look at the answer at the end of the sequence.
    held: bool = False
    #: Shutdown.
    now: bool = False

    @property
    def target(self) -> str:
        """The process it is about: ``c0`` or ``c0/e0``."""
        return f"{self.container}/{self.process}" if self.process else self.container

    def __str__(self) -> str:
        words = [
            f"{name}={value}" for name, value in self.to_json().items() if name not in ("rpc", "container", "process")
        ]
        return f"{self.rpc} {' '.join([self.target, *words])}"

    def to_json(self) -> dict[str, Any]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        changed = {field.name for field in fields(self) if values[field.name] != field.default}
        return {name: value for name, value in values.items() if name in changed or name == "rpc"}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        program = Program(data["program"]) if "program" in data else None
        return cls(**{**data, "rpc": Rpc(data["rpc"]), "program": program})


@dataclass(frozen=True, slots=True)
class Step:
    """Calls issued at once; the step is over when all have answered and ``until`` has come true.

    ``until`` holds ``exit c0/e0`` (its exit event was published) and ``up c0`` (its program is ready).
    """

    calls: tuple[Call, ...]
    until: tuple[str, ...] = ()
    #: The calls race with each other, so the state afterwards is not looked at.
    open: bool = False

    @property
    def containers(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(call.container for call in self.calls))

    def __str__(self) -> str:
        text = " ∥ ".join(map(str, self.calls))
        return f"{text}, until {', '.join(self.until)}" if self.until else text


@dataclass(frozen=True, slots=True)
class Sequence:
    """``alone``: on a pod of its own, in which ``c0`` is the first container."""

    name: str
    steps: tuple[Step, ...]
    alone: bool = False
    #: Why it is kept, for a sequence in ``cases``.
    note: str = ""

    def calls(self) -> Iterator[Call]:
        for step in self.steps:
            yield from step.calls

    def with_steps(self, steps: tuple[Step, ...]) -> "Sequence":
        return replace(self, steps=steps)

    def __str__(self) -> str:
        lines = [f"sequence {self.name}{' (a pod of its own)' if self.alone else ''}"]
        return "\n".join([*lines, *(f"  {number}. {step}" for number, step in enumerate(self.steps))])

    def to_json(self) -> str:
        steps = [
            {
                "calls": [call.to_json() for call in step.calls],
                **({"until": list(step.until)} if step.until else {}),
                **({"open": True} if step.open else {}),
            }
            for step in self.steps
        ]
        head = {
            "name": self.name,
            **({"alone": True} if self.alone else {}),
            **({"note": self.note} if self.note else {}),
        }
        lines = ",\n  ".join(json.dumps(step) for step in steps)
        return json.dumps(head)[:-1] + f', "steps": [\n  {lines}\n]}}\n'

    @classmethod
    def from_json(cls, text: str) -> Self:
        data = json.loads(text)
        steps = tuple(
            Step(tuple(map(Call.from_json, step["calls"])), tuple(step.get("until", ())), step.get("open", False))
            for step in data["steps"]
        )
        return cls(data["name"], steps, data.get("alone", False), data.get("note", ""))


def cases() -> list[Sequence]:
    """The sequences that once found something, and those that show an intended difference."""
    files = sorted(Path(__file__).with_name("cases").glob("*.json"))
    return [Sequence.from_json(file.read_text()) for file in files]
