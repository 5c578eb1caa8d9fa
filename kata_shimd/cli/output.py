"""What the verbs share: their options, their tables, and an error as words and an exit code."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from kata_shimd.debug.escape import one_line
from kata_shimd.debug.pods import Ambiguous
from kata_shimd.errors import InvalidArgument, NotFound, ShimError

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
NOT_RUNNING: Final = 3
NO_SUCH_POD: Final = 4

RUN_DIR: Final = "/run/kata-shimd"
SCHEMA_VERSION: Final = 1


def add_run_dir(parser: argparse.ArgumentParser) -> None:
    """``--run-dir``; its default is the environment's, which the launcher heeds as well."""
    default = os.environ.get("KATA_SHIMD_RUN_DIR") or RUN_DIR
    parser.add_argument(
        "--run-dir", type=Path, default=Path(default), metavar="DIR", help="where pods are (%(default)s)"
    )


def add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table", help="form (%(default)s)")


def add_pod(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pod", metavar="POD", help="sandbox id, container id or pod hash, or the beginning of one")


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Columns as wide as what is in them, two blanks apart."""
    cells = [tuple(head), *(tuple(one_line(cell) for cell in row) for row in rows)]
    widths = [max(len(row[index]) for row in cells) for index in range(len(head))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells)
    return "\n".join(lines) + "\n"


def complain(error: ShimError) -> int:
    """Say it on stderr; the exit code for it."""
    print(f"kata-shimd: {one_line(str(error))}", file=sys.stderr)
    if isinstance(error, Ambiguous):
        for pod in error.pods:
            print(f"  {pod.name}  {one_line(pod.sandbox_id)}  {one_line(pod.namespace)}  {pod.phase}", file=sys.stderr)
    if isinstance(error, InvalidArgument):
        return USAGE
    return NO_SUCH_POD if isinstance(error, NotFound) else FAILED
