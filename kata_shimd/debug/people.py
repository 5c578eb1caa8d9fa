"""The names that an attached person begins with: each is short to type, and answers with text, or is the live thing itself."""

import asyncio
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from kata_shimd import journal as journals
from kata_shimd import ledger as ledgers
from kata_shimd.pod.pod import Pod

HELP: Final = """\
pod          the live pod: pod.containers, pod.report(), await pod.stats("id"), …
shim         what serves it: shim.server.connections, shim.publisher, shim.network()
tasks()      every task of the loop, and where it waits
rpcs()       containerd's calls that are under way, and for how long
ledger()     what of the pod exists on the host
journal(20)  the last events
stacks()     what every thread and task does, in full
_            the last value

Python, with await. A statement that blocks blocks the pod. !stacks answers even when the loop does not; Ctrl-C cancels an await."""


class Text(str):
    """Shown as it is, without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def names(
    pod: Pod, shim: Any, calls: Callable[[], Iterable[Mapping[str, Any]]], pod_dir: Path, journal: Path
) -> dict[str, Any]:
    """The live pod, what serves it, and helpers that look at it. ``calls`` says what is under way."""
    return {
        "pod": pod,
        "shim": shim,
        "help": Help(),
        "tasks": lambda: _lines(_task(task) for task in sorted(asyncio.all_tasks(), key=asyncio.Task.get_name)),
        "rpcs": lambda: _lines(_json(call) for call in calls()),
        "ledger": lambda: _lines(_record(record) for record in ledgers.read(pod_dir).live.values()),
        "journal": lambda last=20: _lines(_json(event) for event in journals.read(journal)[-last:]),
    }


class Help:
    """`help` or `help()`: the names there are. With something in brackets, what Python knows of it."""

    def __repr__(self) -> str:
        return HELP

    def __call__(self, *things: Any) -> Text:
        if not things:
            return Text(HELP)
        import pydoc

        return Text(pydoc.plain(pydoc.render_doc(things[0])))


def _task(task: "asyncio.Task[Any]") -> str:
    stack = task.get_stack(limit=1)
    where = f"{stack[0].f_code.co_filename}:{stack[0].f_lineno}" if stack else "not begun, or waiting in C"
    return f"{task.get_name()}  {getattr(task.get_coro(), '__qualname__', '')}  {where}"


def _record(record: ledgers.Record) -> str:
    return f"{record.n:3} {record.scope} {record.kind} {_json(record.fields)}"


def _json(thing: Mapping[str, Any]) -> str:
    return json.dumps(dict(thing), default=repr)


def _lines(rows: Iterable[str]) -> Text:
    return Text("\n".join(rows) or "(none)")
