"""What a pod weighs, by part, with and without a network: PSS of its processes when it has booted and its container
sleeps.

With one means: a namespace in which the CNI plugins bridge and host-local have made an interface, so that the daemon
has loaded its library for networks. Each pod is gone before the next is made.
"""

import asyncio
from pathlib import Path
from typing import Final

from integration.bench.guest import Guest, numbered
from integration.bench.results import Claim, Group, Measured, Options, Series, in_tmp
from integration.bench.start import pss
from integration.harness import cni, process
from integration.harness.host import Host
from integration.harness.pods import Pod

PARTS: Final = ("daemon", "qemu", "virtiofsd")
SUBNET: Final = "10.88.0.0/24"
NETNS: Final = "weighed"


def weight(pod: Pod, what: str) -> float:
    """Megabytes of a part of the pod. virtiofsd serves in a child; the daemon's children are the other parts."""
    part = pod.process(what)
    children = [] if what == "daemon" else process.descendants(part.pid)
    return sum(pss(one.pid) for one in (part, *children))


async def weigh(prefix: Path, host: Host, netns: str = "") -> dict[str, float]:
    """Megabytes of each part, and of all."""
    with in_tmp() as root:
        async with Guest(prefix, root, host=host, netns=netns) as guest:
            parts = {what: weight(guest.pod, what) for what in PARTS}
    return {**parts, "all": sum(parts.values())}


def run(options: Options) -> Measured:
    kinds = {"no network": "", "CNI": f"/run/netns/{NETNS}"}
    taken = numbered(f"{what}, {kind}" for kind in kinds for what in (*PARTS, "all"))
    with Host([options.prefix / "bin"]) as host:
        network = cni.bridge(host, "kb0", SUBNET)
        for _ in range(options.rounds):
            with cni.namespace(host, NETNS, network):
                for kind, netns in kinds.items():
                    for what, size in asyncio.run(weigh(options.prefix, host, netns)).items():
                        taken[f"{what}, {kind}"].append(size)
    return {name: Series("MB", values) for name, values in taken.items()}


GROUP: Final = Group(
    "memory",
    "What a pod weighs",
    """PSS (10⁶ bytes) of each part of a pod whose one container sleeps, alone on its host and without a zygote; with CNI the
daemon has loaded what it needs for a network. virtiofsd is its parent and the child that serves. QEMU's has in it the
memory that the guest has touched until then.""",
    run,
    (
        Claim("memory of a pod with a network", "all, CNI"),
        Claim("daemon of a pod with a network", "daemon, CNI"),
    ),
)
