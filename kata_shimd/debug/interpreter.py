"""The interpreter behind `attach`: compiles what a person typed, runs it in the daemon's loop, and says what came of it.

A statement may ``await`` at its top level. It runs as a task of the daemon's own TaskGroup, so that it sees the pod as the daemon's
code does, and whatever it raises is shown to the person and to nobody else. What it prints goes to the session it came from. Must
never happen: a failing statement that ends the pod.
"""

import ast
import asyncio
import builtins
import inspect
import io
import linecache
import rlcompleter
import sys
import threading
import traceback
import types
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, Final

#: A value's representation is cut here: it is for reading.
MAX_SHOWN: Final = 64 << 10
MAX_COMPLETIONS: Final = 200
_VALUE: Final = "__value__"

#: Where the running statement's output goes; unset outside of statements.
_say: ContextVar[Callable[[str], None] | None] = ContextVar("say", default=None)


class RoutedOutput(io.TextIOBase):
    """``sys.stdout`` while sessions are open: a statement's output goes to its session, all other to where it went before."""

    def __init__(self, otherwise: Any) -> None:
        self._otherwise = otherwise

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        say = _say.get()
        if say is None:
            return int(self._otherwise.write(text)) if self._otherwise is not None else len(text)
        say(text)
        return len(text)


def route_output() -> None:
    """Make `RoutedOutput` the standard output, once."""
    if not isinstance(sys.stdout, RoutedOutput):
        sys.stdout = RoutedOutput(sys.stdout)


class Interpreter:
    """One session's names, and how statements run among them."""

    def __init__(self, names: dict[str, Any]) -> None:
        self.names: dict[str, Any] = {"__builtins__": builtins, "__name__": "attached", **names}
        self._count = 0

    async def run(self, source: str, say: Callable[[str], None]) -> bool:
        """Run statements; whatever they print, the last one's value and what was raised is said. True when nothing was raised."""
        _say.set(say)
        try:
            value = await self._value(source)
        # A task that raises one of the last two would take the loop with it: `exit()` ends a session, never the pod.
        except (Exception, asyncio.CancelledError, SystemExit, KeyboardInterrupt) as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None:
                task.uncancel()
            say(_explain(error))
            return False
        return self._show(value, say)

    async def _value(self, source: str) -> Any:
        code = compile_statements(source, self._file(source))
        function = types.FunctionType(code, self.names)
        result = function()
        if code.co_flags & inspect.CO_COROUTINE:
            await result
        return self.names.pop(_VALUE, None)

    def _file(self, source: str) -> str:
        """A name of the statement's own, known to tracebacks."""
        self._count += 1
        name = f"<attach {self._count}>"
        linecache.cache[name] = len(source), None, source.splitlines(keepends=True), name
        return name

    def _show(self, value: Any, say: Callable[[str], None]) -> bool:
        if value is None:
            return True
        self.names["_"] = value
        try:
            text = repr(value)
        except Exception as error:  # somebody's __repr__
            say(_explain(error))
            return False
        say(text[:MAX_SHOWN] + (f"... ({len(text)} characters)\n" if len(text) > MAX_SHOWN else "\n"))
        return True

    def complete(self, text: str) -> list[str]:
        """Names and attributes that begin so."""
        completer = rlcompleter.Completer(self.names)
        found = (completer.complete(text, index) for index in range(MAX_COMPLETIONS))
        return [name for name in iter(lambda: next(found, None), None) if name is not None]


def compile_statements(source: str, file: str) -> types.CodeType:
    """Like the interpreter's prompt: the value of a last expression is kept, ``await`` needs no function.

    :raises SyntaxError, ValueError: it is no Python
    """
    tree = ast.parse(source, file)
    if tree.body and isinstance(last := tree.body[-1], ast.Expr):
        kept = ast.Assign([ast.Name(_VALUE, ast.Store())], last.value)
        tree.body[-1] = ast.fix_missing_locations(ast.copy_location(kept, last))
    code: types.CodeType = compile(tree, file, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    return code


def _explain(error: BaseException) -> str:
    """The traceback from the statement on: how the interpreter came to it is of no interest."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    return "".join(traceback.format_exception(type(error), error, trace))


# --- stacks ----------------------------------------------------------------------------------------------------------


def stacks(loop: asyncio.AbstractEventLoop, *, spared: int = 0) -> str:
    """What every thread does at this moment, and where each task of the loop waits. Works from any thread, blocked loop or not.

    :param spared: the ident of a thread to leave out, the one that asks
    """
    return "\n".join((*_threads(spared), *_tasks(loop), ""))


def _threads(spared: int) -> Iterator[str]:
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, frame in sys._current_frames().items():
        if ident != spared:
            yield f"thread {names.get(ident, ident)}, now in:\n" + "".join(traceback.format_stack(frame))


def _tasks(loop: asyncio.AbstractEventLoop) -> Iterator[str]:
    for task in sorted(asyncio.all_tasks(loop), key=asyncio.Task.get_name):
        out = io.StringIO()
        task.print_stack(file=out)
        yield out.getvalue()
