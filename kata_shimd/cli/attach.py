"""``kata-shimd attach POD``: Python, with ``await``, inside the pod's live daemon. Reads a script when stdin is no terminal."""

import argparse
import ast
import codeop
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from kata_shimd.cli.output import FAILED, OK, add_pod, add_run_dir
from kata_shimd.debug import attached, pods
from kata_shimd.debug.attached import Connection
from kata_shimd.errors import InvalidArgument

PROMPT: Final = ">>> "
MORE: Final = "... "
STACKS: Final = "!stacks"
LEAVE: Final = frozenset({"exit", "exit()", "quit", "quit()"})
HISTORY: Final = Path("~/.local/state/kata-shimd/attach_history")
MAX_HISTORY: Final = 1000
BANNER: Final = (
    "Inside the daemon of pod {pod} ({name}). `help` says what there is; Ctrl-D leaves, and the pod goes on."
)


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "attach",
        help="Python inside a live pod's daemon",
        description="An asyncio prompt inside the daemon, with the live pod as `pod`. A script on stdin is run statement by "
        "statement, up to the first that fails. Each attach is in the daemon's log and in the pod's journal.",
    )
    add_pod(parser)
    parser.add_argument("-c", "--command", metavar="CODE", help="run this, and leave")
    parser.add_argument("--stacks", action="store_true", help="what every thread and task does, and leave")
    add_run_dir(parser)


def run(args: argparse.Namespace) -> int:
    pod = pods.find(args.run_dir, args.pod)
    connection = attached.connect(pod)
    try:
        if args.stacks:
            connection.stacks(_say)
            return OK
        if args.command is not None:
            return OK if connection.run(args.command, _say) else FAILED
        if not sys.stdin.isatty():
            return script(connection, sys.stdin.read())
        print(BANNER.format(pod=pod.sandbox_id, name=pod.name), file=sys.stderr)
        return prompt(connection)
    finally:
        connection.close()


def script(connection: Connection, text: str) -> int:
    """Run statement by statement, each with its value shown; stop at the first that fails. Nothing runs of what is no Python."""
    try:
        whole = ast.parse(text, "<stdin>")
    except (SyntaxError, ValueError) as error:
        raise InvalidArgument("read script", "stdin", str(error)) from error
    done = all(connection.run(ast.unparse(statement), _say) for statement in whole.body)
    return OK if done else FAILED


def prompt(connection: Connection) -> int:
    """A person's prompt: history, completion, Ctrl-C for what takes too long, Ctrl-D to leave."""
    with _Readline(connection.complete):
        while (source := _typed()) is not None and source.strip() not in LEAVE:
            try:
                _execute(connection, source)
            except KeyboardInterrupt:
                connection.interrupt()
                connection.finish(_say)
    return OK


def _execute(connection: Connection, source: str) -> None:
    if source.strip() == STACKS:
        connection.stacks(_say)
    else:
        connection.run(source, _say)


def _typed() -> str | None:
    """A whole statement, as the interpreter's own prompt tells where it ends; None when the person leaves."""
    lines: list[str] = []
    while True:
        try:
            lines.append(input(MORE if lines else PROMPT))
        except EOFError:
            print()
            return None
        except KeyboardInterrupt:
            print()
            lines.clear()
            continue
        if not unfinished(source := "\n".join(lines)):
            return source


def unfinished(source: str) -> bool:
    """Whether more lines must come. What is no Python is finished: the daemon will say so."""
    if source.startswith("!"):
        return False
    compiler = codeop.CommandCompiler()
    compiler.compiler.flags |= ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    with suppress(SyntaxError, ValueError, OverflowError):
        return compiler(source, "<attach>", "single") is None
    return False


def _say(text: str) -> None:
    print(text, end="", flush=True)


class _Readline:
    """History and completion, where Python has readline."""

    def __init__(self, complete: Callable[[str], list[str]]) -> None:
        self._complete, self._found = complete, list[str]()
        self._file = HISTORY.expanduser()

    def __enter__(self) -> None:
        with suppress(ImportError, OSError):
            import readline

            readline.set_completer(self._completer)
            readline.parse_and_bind("tab: complete")
            readline.set_history_length(MAX_HISTORY)
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            readline.read_history_file(self._file)

    def __exit__(self, *_: object) -> None:
        with suppress(ImportError, OSError):
            import readline

            readline.set_completer(None)
            readline.write_history_file(self._file)
            self._file.chmod(0o600)

    def _completer(self, text: str, state: int) -> str | None:
        if state == 0:
            self._found = self._complete(text) if text else []
        return self._found[state] if state < len(self._found) else None
