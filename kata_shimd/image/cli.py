"""``kata-shimd guest build | ls | show | rm``. Progress goes to stderr, answers to stdout."""

import argparse
import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kata_shimd.errors import NotFound, ShimError
from kata_shimd.image.build import CACHE, Programs, build_guest
from kata_shimd.image.manifest import default_text
from kata_shimd.image.store import CURRENT, DIRECTORY, Store


def add_parser(subparsers: Any) -> None:
    """Adds the verb ``guest`` to ``argparse``'s subparsers; ``run`` carries it out."""
    guest = subparsers.add_parser("guest", help="build and list guests (kernel and images)")
    guest.set_defaults(run=run)
    verbs = guest.add_subparsers(dest="guest_verb", required=True, metavar="VERB")
    _add_build(verbs)
    for name, text in (("ls", "list guests"), ("show", "print a guest's record"), ("rm", "remove a guest")):
        verb = verbs.add_parser(name, help=text)
        verb.add_argument(
            "--output", type=Path, default=DIRECTORY, metavar="DIR", help="where guests are (%(default)s)"
        )
        if name == "show":
            verb.add_argument("guest", nargs="?", default=CURRENT, help="digest or its beginning (%(default)s)")
        if name == "rm":
            verb.add_argument("guest", help="digest or its beginning")
            verb.add_argument("--force", action="store_true", help="also when it is the current one")


def _add_build(verbs: Any) -> None:
    build = verbs.add_parser("build", help="build a guest from distribution packages and make it current")
    programs = Programs()
    build.add_argument("--output", type=Path, default=DIRECTORY, metavar="DIR", help="where guests go (%(default)s)")
    build.add_argument("--cache", type=Path, default=CACHE, metavar="DIR", help="downloaded packages (%(default)s)")
    build.add_argument("--manifest", type=Path, metavar="FILE", help="what the guest is made of (the built-in one)")
    build.add_argument("--agent", type=Path, default=programs.agent, metavar="PATH", help="static agent binary")
    build.add_argument("--init", type=Path, default=programs.init, metavar="PATH", help="static init of the initrd")
    build.add_argument(
        "--trivial-init", type=Path, default=programs.trivial, metavar="PATH", help="init of the trivial guest"
    )
    build.add_argument("--force", action="store_true", help="build although this guest exists")


def run(args: argparse.Namespace) -> int:
    """Exit code; a foreseen failure is one line on stderr and 1."""
    try:
        _VERBS[args.guest_verb](args)
    except ShimError as error:
        print(f"kata-shimd: {error}", file=sys.stderr)
        return 1
    return 0


def _build(args: argparse.Namespace) -> None:
    programs = Programs(agent=args.agent, init=args.init, trivial=args.trivial_init)
    text = default_text() if args.manifest is None else _read(args.manifest)
    store = Store(args.output)
    digest = build_guest(text, programs, store=store, cache=args.cache, force=args.force, say=_say)
    print(store.directory / digest)


def _ls(args: argparse.Namespace) -> None:
    for guest in Store(args.output).guests():
        size = sum(output["size"] for output in guest.record["outputs"].values())
        built = datetime.fromtimestamp(guest.path.stat().st_mtime, UTC).isoformat(timespec="seconds")
        mark = "*" if guest.current else " "
        print(f"{mark} {guest.digest}  {guest.record['kernel_release']}  {size >> 20} MiB  {built}")


def _show(args: argparse.Namespace) -> None:
    guest = Store(args.output).get(args.guest)
    print(json.dumps({"path": str(guest.path), "current": guest.current} | guest.record, indent=2))


def _rm(args: argparse.Namespace) -> None:
    print(Store(args.output).remove(args.guest, force=args.force).digest)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise NotFound("read guest manifest", str(path), error.strerror or str(error)) from error


def _say(line: str) -> None:
    print(f"guest: {line}", file=sys.stderr, flush=True)


_VERBS: dict[str, Callable[[argparse.Namespace], None]] = {"build": _build, "ls": _ls, "show": _show, "rm": _rm}
