"""Many pods on one node, with a zygote: what a daemon weighs, and what the last `start` costs beside the first.

The first pod is started, and removed, half the times before the others come, and half after they have gone, for the
machine's speed drifts; the last, with all others up. Beside the daemons as many of runc's shims are weighed, which
have been started and were asked nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from integration.bench.results import Claim, Group, Measured, Options, Series, in_tmp
from integration.bench.runc import binary
from integration.bench.start import Node, place, pss, settled

PODS: Final = 20


def started(node: Node, name: str, times: int) -> list[float]:
    """Seconds of `start` of a pod that is removed at once, again and again."""
    taken = []
    for number in range(times):
        taken.append(node.start(f"{name}{number}"))
        node.delete(f"{name}{number}")
    return taken


@contextmanager
def up(node: Node, count: int) -> Iterator[list[int]]:
    """So many pods that have booted, one after another; the pids of their daemons."""
    names = [f"w{number}" for number in range(count)]
    try:
        for name in names:
            settled(node, name)
        yield [node.pod(name).process("daemon").pid for name in names]
    finally:
        for name in names:
            if (node.root / "b" / name).exists():
                node.delete(name)


def measure(node: Node, rounds: int, count: int) -> dict[str, Series]:
    half = (rounds + 1) // 2
    with node.zygote() as zygote:
        first = started(node, "f", half)
        with up(node, count - 1) as others:
            last = started(node, "l", rounds)
            with up_one_more(node) as one:
                daemons = [pss(pid) for pid in (*others, one)]
                share = pss(zygote) / count
        first += started(node, "g", rounds - half)
    return {
        "daemon": Series("MB", daemons),
        "zygote's share": Series("MB", [share]),
        "daemon and its share of the zygote": Series("MB", [size + share for size in daemons]),
        "runc's shim": Series("MB", node.runc_weights(count)),
        "start, alone": Series("ms", [1000 * value for value in first]),
        "start, beside all others": Series("ms", [1000 * value for value in last]),
    }


@contextmanager
def up_one_more(node: Node) -> Iterator[int]:
    settled(node, "last")
    try:
        yield node.pod("last").process("daemon").pid
    finally:
        node.delete("last")


def run(options: Options) -> Measured:
    with in_tmp(place()) as root:
        return measure(Node(root, options.prefix, binary()), options.rounds, 2 if options.quick else PODS)


GROUP: Final = Group(
    "density",
    f"{PODS} pods",
    f"""{PODS} pods from one zygote, all booted, no container in them. A daemon's PSS, and the zygote's shared out among them;
as many of runc's shims as they are after `start`. `start` of the {PODS}th pod while the others are up, again and
again, beside that of a pod that is alone, half of them before and half after.""",
    run,
    (
        Claim(
            f"daemon PSS per pod at {PODS} pods, zygote's share counted",
            "daemon and its share of the zygote",
            aim=6,
            limits="pages that are written after the fork, be it only because objects' references are counted in them",
        ),
        Claim("the same of runc's shim, for comparison", "runc's shim"),
        Claim(f"start of pod {PODS} ÷ pod 1", "start, beside all others", "start, alone", 1.2),
    ),
)
