"""``kata-shimd``, the command for people. containerd runs another program, `containerd-shim-kata-v2`.

A composition root: environment and arguments are read here. Answers go to stdout, talk to stderr. Only the verb that is asked for
is imported, so that ``--help`` is quick. Exit codes:

    0  done, and nothing wrong was found
    1  it failed, or something wrong was found
    2  wrong usage, or a name that fits several pods
    3  the pod does not run, or no longer has what was asked for
    4  there is no such pod
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from kata_shimd import __version__
from kata_shimd.errors import ShimError

FAILED: Final = 1
INTERRUPTED: Final = 130


@dataclass(frozen=True, slots=True)
class Verb:
    """``module`` has ``add_parser(subparsers)`` and ``run(args) -> int``."""

    name: str
    help: str
    module: str


VERBS: Final = (
    Verb("check", "whether this host has everything a pod needs", "kata_shimd.cli.check"),
    Verb("ps", "list pods", "kata_shimd.cli.ps"),
    Verb("why", "what happened to a pod, and most likely why", "kata_shimd.cli.why"),
    Verb("logs", "what a pod's guest console, QEMU, virtiofsd or daemon wrote", "kata_shimd.cli.logs"),
    Verb("attach", "Python inside a live pod's daemon", "kata_shimd.cli.attach"),
    Verb("qmp", "ask a live pod's QEMU by its second monitor", "kata_shimd.cli.qmp"),
    Verb("guest", "build and list guests (kernel and images)", "kata_shimd.image.cli"),
    Verb("template", "make, list and remove what pods are cloned from", "kata_shimd.cli.template"),
    Verb("config", "show and check the configuration", "kata_shimd.cli.config"),
    Verb("upgrade", "move running pods' daemons to this installation", "kata_shimd.cli.upgrade"),
    Verb("systemd", "make pods units of systemd's on this node, or no longer", "kata_shimd.cli.systemd"),
    Verb("zygote", "serve forks of a warm daemon, for starts in milliseconds", "kata_shimd.cli.zygote"),
    Verb("version", "print versions", "kata_shimd.cli.version"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _run(words)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has seen enough. Python would complain when it flushes stdout at its own end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    return code


def _run(words: Sequence[str]) -> int:
    verb = _asked(words)
    module = importlib.import_module(verb.module) if verb else None
    args = _parser(verb, module).parse_args(words)
    if module is None:
        raise AssertionError("argparse takes no other verb")
    try:
        return int(module.run(args))
    except ShimError as error:
        from kata_shimd.cli.output import complain

        return complain(error)


def _asked(words: Sequence[str]) -> Verb | None:
    """The verb is the first word that is no option: before it come only options without a value."""
    name = next((word for word in words if not word.startswith("-")), "")
    return next((verb for verb in VERBS if verb.name == name), None)


def _parser(asked: Verb | None, module: Any) -> argparse.ArgumentParser:
    """A parser that knows one verb in full and the others by name."""
    parser = argparse.ArgumentParser(
        prog="kata-shimd",
        description="Build guests for, look at and explain pods that run in virtual machines of their own.",
        epilog="Exit codes: 0 well, 1 failed, 2 wrong usage or several pods fit, 3 the pod does not run, 4 no such pod.",
    )
    parser.add_argument("--version", action="version", version=f"kata-shimd {__version__}")
    subparsers = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb in VERBS:
        if verb is asked:
            module.add_parser(subparsers)
        else:
            subparsers.add_parser(verb.name, help=verb.help, add_help=False)
    return parser
