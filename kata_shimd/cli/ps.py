"""``kata-shimd ps``: the pods of this host."""

import argparse
import json
import sys
import time
from typing import Any, Final

from kata_shimd.cli.output import OK, SCHEMA_VERSION, add_output, add_run_dir, table
from kata_shimd.debug import pods
from kata_shimd.debug.why import rfc3339

_HEAD: Final = ("POD", "SANDBOX", "NAMESPACE", "PHASE", "DAEMON", "QEMU", "CONTAINERS", "AGE")
_SHORT: Final = 12
#: So many containers make a line; the others are counted.
_MOST: Final = 4


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("ps", help="list pods")
    parser.add_argument(
        "-a", "--all", action="store_true", help="also pods that have ended, as long as journals are kept"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="only the pods' hashes")
    parser.add_argument("--no-trunc", action="store_true", help="whole identifiers, and all of them")
    add_output(parser)
    add_run_dir(parser)


def run(args: argparse.Namespace) -> int:
    found = [pod for pod in pods.every(args.run_dir) if args.all or pod.live]
    if args.quiet:
        sys.stdout.writelines(f"{pod.name}\n" for pod in found)
    elif args.output == "json":
        answer = {"schema_version": SCHEMA_VERSION, "pods": [_as_json(pod) for pod in found]}
        sys.stdout.write(json.dumps(answer, indent=2) + "\n")
    else:
        now = time.time_ns()
        sys.stdout.write(table(_HEAD, [_row(pod, now, whole=args.no_trunc) for pod in found]))
    return OK


def _row(pod: pods.Pod, now: int, *, whole: bool) -> tuple[str, ...]:
    def short(text: str) -> str:
        return text if whole else text[:_SHORT]

    shown = pod.containers if whole else pod.containers[:_MOST]
    more = len(pod.containers) - len(shown)
    containers = ",".join((*map(short, shown), *([f"{more} more"] if more else [])))
    return (
        short(pod.name),
        short(pod.sandbox_id) or "?",
        pod.namespace or "?",
        str(pod.phase),
        _process(pod, pods.DAEMON),
        _process(pod, pods.QEMU),
        containers or "-",
        age((now - pod.began_ns) // 1_000_000_000) if pod.began_ns is not None else "?",
    )


def _process(pod: pods.Pod, what: str) -> str:
    process = pod.process(what)
    if process is None:
        return "-"
    return str(process.pid) if process.alive else f"{process.pid} dead"


def _as_json(pod: pods.Pod) -> dict[str, Any]:
    return {
        "hash": pod.name,
        "sandbox_id": pod.sandbox_id,
        "namespace": pod.namespace,
        "address": pod.address,
        "phase": str(pod.phase),
        "processes": [{"what": item.what, "pid": item.pid, "alive": item.alive} for item in pod.processes],
        "containers": list(pod.containers),
        "began": rfc3339(pod.began_ns) if pod.began_ns is not None else None,
    }


def age(seconds: int) -> str:
    """The two largest units, as kubectl writes ages."""
    units = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))
    for index, (size, name) in enumerate(units[:-1]):
        if seconds >= size:
            smaller, smaller_name = units[index + 1]
            rest = seconds % size // smaller
            return f"{seconds // size}{name}" + (f"{rest}{smaller_name}" if rest else "")
    return f"{max(seconds, 0)}s"
