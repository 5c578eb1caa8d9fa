"""``kata-shimd zygote``: the node's process from which pod daemons are forked; for a service manager, in the foreground."""

import argparse
import logging
import os
import signal
import socket
import sys
from typing import Any, NoReturn

from kata_shimd.cli.output import OK, add_run_dir


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "zygote",
        help="serve forks of a warm daemon, for starts in milliseconds",
        description="Runs until it is told to end. Pods start without it too, only slower. As a service it must live in the host's "
        "own mount, network and PID namespace (no PrivateTmp, no ProtectSystem): launchers pass over one that does not.",
    )
    add_run_dir(parser)


def run(args: argparse.Namespace) -> int:
    from kata_shimd import rehearsal, zygote

    logging.basicConfig(level=logging.INFO, format="kata-shimd zygote: %(message)s", stream=sys.stderr)
    serving = zygote.Zygote(args.run_dir, zygote.warm(), rehearsal.in_child)
    signal.signal(signal.SIGTERM, _leave)
    _say_ready()
    try:
        serving.serve()
    except (_Leave, KeyboardInterrupt):
        return OK
    finally:
        serving.close()


class _Leave(Exception):
    """SIGTERM."""


def _leave(*_: object) -> NoReturn:
    raise _Leave


def _say_ready() -> None:
    """The service manager's readiness protocol: one datagram, where it asks for one."""
    if not (address := os.environ.pop("NOTIFY_SOCKET", "")):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect("\0" + address[1:] if address.startswith("@") else address)
        sock.send(b"READY=1")
