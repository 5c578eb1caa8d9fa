"""``kata-shimd logs POD``: the files of a live pod, or for a dead one the ends of them that its journal kept."""

import argparse
import errno
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kata_shimd.cli.output import NOT_RUNNING, OK, add_pod, add_run_dir
from kata_shimd.debug import pods, why
from kata_shimd.debug.escape import harmless
from kata_shimd.errors import HostFailed

#: More of a file than this is not read; consoles are capped below it.
MAX_READ: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class Source:
    """A file in the pod's directory, and where its end is in the journal: events, newest first, and their field."""

    option: str
    file: str
    what: str
    events: tuple[str, ...]
    field: str


SOURCES: Final = (
    Source("console", "console.log", "the guest's console (the default)", ("vm-ended", "qemu-ended"), "console"),
    Source("qemu", "qemu.stderr", "QEMU's stderr", ("vm-ended", "qemu-ended"), "stderr"),
    Source("virtiofsd", "virtiofsd.stderr", "virtiofsd's stderr", ("virtiofsd-ended",), "stderr"),
    Source(
        "daemon", "daemon.stderr", "the daemon's stderr; its log is in containerd's", ("daemon-failed",), "traceback"
    ),
)


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("logs", help="what a pod's guest console, QEMU, virtiofsd or daemon wrote")
    add_pod(parser)
    choice = parser.add_mutually_exclusive_group()
    for source in SOURCES:
        choice.add_argument(
            f"--{source.option}",
            dest="source",
            action="store_const",
            const=source,
            default=SOURCES[0],
            help=source.what,
        )
    parser.add_argument("-n", "--tail", type=_count, metavar="N", help="only the last N lines")
    add_run_dir(parser)


def _count(text: str) -> int:
    count = int(text)
    if count < 0:
        raise argparse.ArgumentTypeError("want 0 or more")
    return count


def run(args: argparse.Namespace) -> int:
    pod = pods.find(args.run_dir, args.pod)
    text = _live(pod.directory / args.source.file) if pod.live else None
    if text is None:
        text = _kept(pod, args.source)
    if text is None:
        print(f"kata-shimd: pod {pod.name}, {pod.phase}: nothing of {args.source.file} was kept", file=sys.stderr)
        return NOT_RUNNING
    sys.stdout.writelines(_lines(text, args.tail))
    return OK


def _live(path: Path) -> str | None:
    """The file's text, None when there is none.

    :raises HostFailed: it cannot be read
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        hint = "run as root" if error.errno in (errno.EACCES, errno.EPERM) else ""
        raise HostFailed("read", str(path), error.strerror or "", hint=hint) from error
    with os.fdopen(fd, "rb") as file:
        file.seek(max(0, os.fstat(fd).st_size - MAX_READ))
        return file.read(MAX_READ).decode(errors="backslashreplace")


def _kept(pod: pods.Pod, source: Source) -> str | None:
    story = why.explain(pod).story
    ends = (entry.text(source.field) for name in source.events for entry in story.all(name))
    kept = [text for text in ends if text]
    if not kept:
        return None
    print("kata-shimd: the pod has ended; this is the end that its journal kept", file=sys.stderr)
    return kept[0]


def _lines(text: str, tail: int | None) -> Iterator[str]:
    every = harmless(text).splitlines()
    return (f"{line}\n" for line in (every if tail is None else every[len(every) - min(tail, len(every)) :]))
