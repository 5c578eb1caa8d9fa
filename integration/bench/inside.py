"""A second container in a running pod, and an exec, beside the same crun by hand in the same guest, and runc on the
host.

Each round runs, in turn: our second container, from Create to its first byte; crun's, by hand, in the same guest
(`byhand`); runc's on the host; and the same of an exec. All times are the host's, to the first byte that the new
process writes.
"""

import asyncio
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from integration.bench.byhand import ByHand
from integration.bench.guest import FIRST, KEPT, Guest, config, numbered
from integration.bench.results import Claim, Group, Measured, Options, Series, in_tmp
from integration.harness.image import write_rootfs


class OnHost:
    """runc on the host, to the same rootfs."""

    def __init__(self, guest: Guest) -> None:
        self._guest, self._state = guest, str(guest.root / "runc")

    def __enter__(self) -> "OnHost":
        for name, args in (("hfirst", FIRST), ("hkept", KEPT)):
            bundle = self._guest.bundle(name, config(args))
            write_rootfs(bundle / "rootfs")
        self._runc("run", "--detach", "--bundle", str(self._guest.root / "b/hkept"), "hkept")
        return self

    def __exit__(self, *_: object) -> None:
        self._runc("delete", "--force", "hkept")

    def run(self, name: str) -> float:
        return self._first("run", "--bundle", str(self._guest.root / "b/hfirst"), name)

    def exec(self) -> float:
        return self._first("exec", "hkept", *FIRST)

    def _first(self, *words: str) -> float:
        begin = time.perf_counter()
        argv = ["runc", "--root", self._state, *words]
        with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            child.stdout.readline()
            return time.perf_counter() - begin

    def _runc(self, *words: str) -> None:
        null = subprocess.DEVNULL
        subprocess.run(["runc", "--root", self._state, *words], stdin=null, stdout=null, stderr=null, check=True)


async def measure(prefix: Path, root: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds of each way, a value a round."""
    async with Guest(prefix, root) as guest, ByHand(guest) as hand:
        with OnHost(guest) as host:
            ways = _ways(guest, hand, host)
            for name in _WARM:  # crun is translated, or its pages read, for whoever comes first: for nobody
                await ways[name](-1)
            return await _rounds(ways, rounds)


_WARM: Final = ("second container", "crun run, in the guest", "exec", "crun exec, in the guest")


def _ways(guest: Guest, hand: ByHand, host: OnHost) -> dict[str, Callable[[int], Awaitable[float]]]:
    return {
        "second container": lambda number: guest.second(f"s{number}"),
        "crun run, in the guest": lambda number: hand.run(f"r{number}"),
        "crun run, in the guest, a new root": lambda number: hand.fresh(f"f{number}"),
        "runc run, on the host": lambda number: asyncio.to_thread(host.run, f"h{number}"),
        "exec": lambda number: guest.exec(f"e{number}"),
        "crun exec, in the guest": lambda _: hand.exec(),
        "runc exec, on the host": lambda _: asyncio.to_thread(host.exec),
        "a line to the guest and back": lambda _: hand.nothing(),
    }


async def _rounds(ways: dict[str, Callable[[int], Awaitable[float]]], rounds: int) -> dict[str, list[float]]:
    taken = numbered(ways)
    for number in range(rounds):
        for name, way in ways.items():
            taken[name].append(await way(number))
    return taken


def run(options: Options) -> Measured:
    with in_tmp() as root:
        taken = asyncio.run(measure(options.prefix, root, options.rounds))
    return {name: Series("ms", [1000 * value for value in values]) for name, values in taken.items()}


GROUP: Final = Group(
    "inside",
    "In a running pod",
    """From the RPC (Create, Exec) to the first byte of the process, beside `crun run` and `crun exec` by hand in the same
guest: the guest's own program, from the guest's own disk and so from the same pages in memory, with the agent's
flags, its control group included. By hand is timed by the host's clock too, from the line that asks for it to the
first byte, and has in it the way into the guest and back through a container's streams (the row "a line to the guest
and back") and a shell's fork. It has not in it: a root file system to share with the guest, RPCs, anybody who keeps
account of the container. So there is a second row by hand, of a root file system that the guest has not seen before, as
ours is each time. Runc on the host runs without emulation, so of it only a machine with KVM says anything.""",
    run,
    (
        Claim(
            "second container ÷ the same `crun run` inside the guest",
            "second container",
            "crun run, in the guest",
            1.2,
            limits="the root file system is new to the guest each time: beside crun with such a one it is another row",
        ),
        Claim(
            "exec ÷ the same `crun exec` inside the guest",
            "exec",
            "crun exec, in the guest",
            1.2,
            limits="RPCs; output is read when crun has ended and the daemon knows it",
        ),
        Claim(
            "second container ÷ the same `crun run` inside the guest, of a root file system that is new there",
            "second container",
            "crun run, in the guest, a new root",
        ),
        Claim("second container ÷ `runc run` on the host", "second container", "runc run, on the host"),
        Claim("exec ÷ `runc exec` on the host", "exec", "runc exec, on the host"),
    ),
)
