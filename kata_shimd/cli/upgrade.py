"""``kata-shimd upgrade [POD…|--all]``: daemons of running pods go on in this installation's code, one by one.

What a pod's own daemon does for it is in `docs/upgrade.md`. Here pods are chosen, and each is watched until it serves again.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from kata_shimd import __version__
from kata_shimd.cli import units
from kata_shimd.cli.output import FAILED, NOT_RUNNING, OK, SCHEMA_VERSION, add_output, add_run_dir, complain, table
from kata_shimd.debug import pods
from kata_shimd.errors import FailedPrecondition, InvalidArgument, NotFound, ShimError

LAUNCHER: Final = "containerd-shim-kata-v2"
_HEAD: Final = ("POD", "SANDBOX", "FROM", "TO", "RESULT", "WHY")
#: For the new daemon to have its machine and its guest.
PATIENCE: Final = 60


class Result(StrEnum):
    """UPGRADED: it runs this installation's code. CURRENT: it did already. REFUSED: nothing has happened. BACK: the new daemon
    was tried, and one of the old version serves again. ENDED: the pod did, by itself, before it was moved. UNKNOWN: nobody answered
    in time."""

    UPGRADED = "upgraded"
    CURRENT = "current"
    REFUSED = "refused"
    BACK = "back"
    ENDED = "ended"
    UNKNOWN = "unknown"


#: Nothing is left to be done.
DONE: Final = (Result.UPGRADED, Result.CURRENT, Result.ENDED)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one pod; versions are empty where nobody told."""

    hash: str
    sandbox_id: str
    version_before: str
    version: str
    result: Result
    why: str = ""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "upgrade",
        help="move running pods' daemons to this installation",
        description="Each daemon is replaced by one of the installation that this command belongs to, while containers run and "
        "containerd notices nothing. A new daemon that does not start, or does not take the pod over in time, costs nothing: one "
        "of the version before goes on. After the first pod that went back, the others are left alone. Pods without a keeper "
        "cannot be moved.",
    )
    parser.add_argument(
        "pods", nargs="*", metavar="POD", help="sandbox id, container id or pod hash, or the beginning of one"
    )
    parser.add_argument("--all", action="store_true", help="every running pod, the youngest first")
    parser.add_argument(
        "--within",
        type=int,
        default=PATIENCE,
        metavar="SECONDS",
        help="for a new daemon to take its pod over (%(default)s)",
    )
    add_output(parser)
    add_run_dir(parser)


def run(args: argparse.Namespace) -> int:
    if bool(args.pods) == args.all:
        raise InvalidArgument("upgrade", "pods", "name pods, or say --all")
    python, launcher = installation()
    chosen = _all(args.run_dir) if args.all else [pods.find(args.run_dir, name) for name in args.pods]
    for pod in chosen:
        if not pod.live:
            return _not_running(pod)
    outcomes = asyncio.run(_each(chosen, python, launcher, args.within))
    _print(outcomes, args.output)
    units.follow((one.hash for one in outcomes if one.result in (Result.UPGRADED, Result.CURRENT)), launcher)
    return OK if all(outcome.result in DONE for outcome in outcomes) else FAILED


def installation() -> tuple[str, str]:
    """The interpreter and the launcher of the installation that runs this.

    :raises FailedPrecondition: there is no launcher beside the interpreter
    """
    launcher = Path(sys.executable).with_name(LAUNCHER)
    if not launcher.exists():
        hint = "run the kata-shimd of the installation that pods are to move to"
        raise FailedPrecondition(
            "upgrade", str(launcher), "there is no launcher beside this command's interpreter", hint=hint
        )
    # The launcher's own choice, so that a pod which it has started is known to be of this installation.
    beside = launcher.with_name("python3")
    return str(beside) if beside.exists() else sys.executable, str(launcher)


def _all(run_dir: Path) -> list[pods.Pod]:
    return [pod for pod in pods.every(run_dir) if pod.phase is pods.Phase.RUNNING]


def _not_running(pod: pods.Pod) -> int:
    complain(NotFound("upgrade", pod.name, "this pod has ended", hint=f"kata-shimd why {pod.name}"))
    return NOT_RUNNING


async def _each(chosen: Sequence[pods.Pod], python: str, launcher: str, patience: int) -> list[Outcome]:
    """One after the other; after one that went back, or does not answer, nobody else is tried."""
    from kata_shimd.cli import upgrading

    outcomes: list[Outcome] = []
    for pod in chosen:
        try:
            outcome = await upgrading.move(pod, python, launcher, patience)
        except ShimError as error:
            outcome = Outcome(pod.name, pod.sandbox_id, "", "", Result.REFUSED, str(error))
        outcomes.append(outcome)
        if outcome.result in (Result.BACK, Result.UNKNOWN):
            left = f"not tried, after {outcome.hash}"
            rest = chosen[len(outcomes) :]
            return [*outcomes, *(Outcome(pod.name, pod.sandbox_id, "", "", Result.REFUSED, left) for pod in rest)]
    return outcomes


def _print(outcomes: Sequence[Outcome], form: str) -> None:
    if form == "json":
        found = {"schema_version": SCHEMA_VERSION, "installed": __version__, "pods": [asdict(one) for one in outcomes]}
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
        return
    rows = [
        (one.hash[:12], one.sandbox_id[:12], one.version_before or "?", one.version or "?", one.result, one.why or "-")
        for one in outcomes
    ]
    sys.stdout.write(table(_HEAD, rows))
