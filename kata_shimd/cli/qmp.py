"""``kata-shimd qmp POD [COMMAND [ARGUMENTS]]``: QEMU's second monitor, which is for people; the daemon has the first."""

import argparse
import asyncio
import json
import sys
from collections.abc import Iterator
from typing import Any, Final

from kata_shimd.cli.output import FAILED, OK, add_pod, add_run_dir
from kata_shimd.debug import pods
from kata_shimd.debug.escape import one_line
from kata_shimd.errors import FailedPrecondition, InvalidArgument, Unavailable

SOCKET: Final = "qmp-debug.sock"
PROMPT: Final = "(qmp) "
#: QEMU serves one client on a monitor: a second waits until the first has gone.
CONNECT_SECONDS: Final = 5.0


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "qmp",
        help="ask a live pod's QEMU by its second monitor",
        description="Run one command of QEMU's machine protocol, or without one those on stdin, a line each: "
        "a name, and its arguments as a JSON object.",
        epilog='example: kata-shimd qmp POD human-monitor-command \'{"command-line": "info registers"}\'',
    )
    add_pod(parser)
    parser.add_argument("command", nargs="?", metavar="COMMAND", help="such as query-status or query-commands")
    parser.add_argument("arguments", nargs="?", metavar="ARGUMENTS", help="a JSON object")
    add_run_dir(parser)


def run(args: argparse.Namespace) -> int:
    pod = pods.find(args.run_dir, args.pod)
    qemu = pod.process(pods.QEMU)
    if qemu is None or not qemu.alive:
        raise FailedPrecondition("qmp", pod.name, "it has no running QEMU", hint="kata-shimd why tells its story")
    if args.command is None:
        lines = _typed() if sys.stdin.isatty() else iter(sys.stdin)
    else:
        lines = iter([f"{args.command} {args.arguments or ''}"])
    commands = (parse(line) for line in lines if line.strip())
    return asyncio.run(converse(str(pod.directory / SOCKET), commands))


def parse(line: str) -> tuple[str, dict[str, Any]]:
    """A line as a command and its arguments.

    :raises InvalidArgument: the arguments are no JSON object
    """
    name, _, text = line.strip().partition(" ")
    try:
        arguments = json.loads(text) if text.strip() else {}
    except ValueError as error:
        raise InvalidArgument("read QMP command", name, f"arguments: {error}", hint="want a JSON object") from error
    if not isinstance(arguments, dict):
        raise InvalidArgument("read QMP command", name, "its arguments are no JSON object")
    return name, arguments


async def converse(path: str, commands: Iterator[tuple[str, dict[str, Any]]]) -> int:
    """Run the commands in order and print each answer; FAILED when QEMU refused any.

    :raises Unavailable: no monitor answers at ``path``
    """
    from qemu.qmp import ExecuteError, QMPClient, QMPError

    client = QMPClient("kata-shimd")
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            await client.connect(path)
    except (QMPError, OSError, TimeoutError) as error:
        why = str(error) or "it serves somebody else"
        raise Unavailable("connect to QEMU", path, why, hint="one client at a time") from error
    code = OK
    try:
        for name, arguments in commands:
            try:
                answer = await client.execute(name, arguments)
            except ExecuteError as error:
                print(f"kata-shimd: {one_line(name)}: {one_line(str(error))}", file=sys.stderr)
                code = FAILED
            else:
                print(json.dumps(answer, indent=2), flush=True)
    except QMPError as error:
        raise Unavailable("qmp", path, str(error) or "QEMU has gone") from error
    finally:
        await client.disconnect()
    return code


def _typed() -> Iterator[str]:
    while True:
        try:
            yield input(PROMPT)
        except EOFError:
            print()
            return
