"""``kata-shimd version``: ours, and what we run on."""

import argparse
import importlib.metadata
import json
import platform
import sys
from typing import Any, Final

from kata_shimd import __version__
from kata_shimd.cli.output import OK, SCHEMA_VERSION, add_output, table

#: The libraries whose behaviour a report of a bug depends on.
LIBRARIES: Final = ("betterproto2", "qemu.qmp", "uvloop")


def add_parser(subparsers: Any) -> None:
    add_output(subparsers.add_parser("version", help="print versions"))


def run(args: argparse.Namespace) -> int:
    versions = {"kata-shimd": __version__, "python": platform.python_version()}
    versions |= {name: _installed(name) for name in LIBRARIES}
    if args.output == "json":
        sys.stdout.write(json.dumps({"schema_version": SCHEMA_VERSION, "versions": versions}, indent=2) + "\n")
    else:
        sys.stdout.write(table(("NAME", "VERSION"), list(versions.items())))
    return OK


def _installed(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
