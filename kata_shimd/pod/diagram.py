"""Writes docs/state-machines.md from the life-cycle tables: ``python -m kata_shimd.pod.diagram > docs/state-machines.md``.

Owns the page's words and form. Must never happen: a state or a step on the page that is not in the tables, or one of theirs that
is missing there.
"""

import sys
from collections.abc import Iterator
from typing import Final

from kata_shimd.pod.lifecycle import ENDED, EXEC, INIT, Do, State, Table

INTRODUCTION: Final = """\
<!-- made by `python -m kata_shimd.pod.diagram`; edit kata_shimd/pod/lifecycle.py instead -->

# State machines

The life of a process, as `kata_shimd/pod/lifecycle.py` has it. A verb *checks* its step against the table, *does* its work in the
guest, and *commits* the step together with its event. A step that is not in the table is answered `FAILED_PRECONDITION`, and
nothing is done. `exit` is no verb: it happens, when the guest says so or when the VM is lost (status 255).

Other verbs are permissions and not steps. Kill of a process that has ended is answered `NOT_FOUND`, which clients take for "already
gone"; an exec that was not started cannot be killed. Update needs a container that has not ended. Exec and the start of an exec
need a container whose init is `running`. ResizePty and CloseIO succeed in every state.
State, Pids, Connect and Wait can always be asked."""

NUMBERS: Final = """\
## Numbers

What `State` and events call a state, containerd's `Status`. A process in `deleted` is known to nobody."""

MACHINES: Final[tuple[tuple[str, str, Table], ...]] = (
    ("A container's init", "Made by Create, in state `created`.", INIT),
    (
        "A process added by Exec",
        "The same life without pause: a paused container pauses all of its processes at once.",
        EXEC,
    ),
)


def page() -> str:
    """The whole page."""
    machines = (_machine(*machine) for machine in MACHINES)
    return "\n\n".join([INTRODUCTION, *machines, _numbers()]) + "\n"


def _machine(title: str, words: str, table: Table) -> str:
    return "\n".join([f"## {title}", "", words, "", *_diagram(table), "", *_steps(table)])


def _diagram(table: Table) -> Iterator[str]:
    yield "```mermaid"
    yield "stateDiagram-v2"
    yield f"    [*] --> {_name(State.CREATED)}"
    yield from (f"    {_name(begin)} --> {_name(end)}: {do.value}" for (begin, do), end in table.items())
    yield f"    {_name(State.DELETED)} --> [*]"
    yield "```"


def _steps(table: Table) -> Iterator[str]:
    """Every state by every step; a dash is what is refused."""
    steps = [do for do in Do if any(taken is do for _, taken in table)]
    states = [state for state in State if any(begin is state for begin, _ in table)]
    yield "| From | " + " | ".join(do.value for do in steps) + " |"
    yield "|---" * (len(steps) + 1) + "|"
    for state in states:
        cells = (table.get((state, do)) for do in steps)
        yield f"| {_name(state)} | " + " | ".join(_name(to) if to else "–" for to in cells) + " |"


def _numbers() -> str:
    rows = [
        f"| {_name(state)} | {state.value or '–'} | {'yes' if state in ENDED else 'no'} |"
        for state in sorted(State, key=lambda state: state.value or len(State))
    ]
    return "\n".join([NUMBERS, "", "| State | Number | Has ended |", "|---|---|---|", *rows])


def _name(state: State) -> str:
    return state.name.lower()


if __name__ == "__main__":
    sys.stdout.write(page())
