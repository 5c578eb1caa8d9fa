"""Throughput and latency between a bridge and a pod, beside the same bridge and a plain veth pair.

    python -m integration.bench.network [--runs 5] [--mib 64] [--models tcfilter,macvtap]

The far end is the same static busybox each time: in a namespace behind a veth pair, then as a pod's container behind each model.
The near end is this program, inside the private host. Bulk is TCP; a round trip is one byte there and back over TCP, and an
ICMP echo.
"""

import argparse
import os
import re
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from integration.harness import cni, image, process, versions
from integration.harness.containerd import Containerd
from integration.harness.ctr import Ctr
from integration.harness.host import Host
from integration.harness.pods import BOOTED
from integration.harness.scale import SCALE
from integration.harness.waiting import eventually

PREFIX: Final = Path(os.environ.get("KATA_SHIMD_PREFIX", "/opt/kata-shimd"))
SUBNET: Final = "10.87.0.0/24"
SINK, SOURCE, ECHO = 5001, 5002, 5003  # as in NEAR
ROUND_TRIPS: Final = 200
#: Takes everything, gives without end, echoes: each to any number of clients after one another.
SERVE: Final = (
    f"nc -ll -p {SINK} -e sh -c 'cat > /dev/null' & nc -ll -p {SOURCE} -e cat /dev/zero & exec nc -ll -p {ECHO} -e cat"
)

#: The near end: what to do, address, bytes. Prints seconds.
NEAR: Final = """
import socket, statistics, sys, time
what, address, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
s = socket.create_connection((address, {"in": 5001, "out": 5002, "trip": 5003}[what]), timeout=600)
s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
begun = time.perf_counter()
if what == "in":
    block = bytes(1 << 16)
    for _ in range(size >> 16): s.sendall(block)
    s.shutdown(socket.SHUT_WR); s.recv(1)
    print(time.perf_counter() - begun)
elif what == "out":
    got, block = 0, bytearray(1 << 18)
    while got < size: got += s.recv_into(block)
    print(time.perf_counter() - begun)
else:
    trips = []
    for _ in range(size):
        start = time.perf_counter(); s.sendall(b"x"); s.recv(1); trips.append(time.perf_counter() - start)
    print(statistics.median(trips))
"""


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one round: MiB/s into and out of the far end, and milliseconds for a round trip."""

    into: float
    out: float
    trip_ms: float
    ping_ms: float


def measure(host: Host, address: str, mib: int) -> Figures:
    size = mib << 20
    return Figures(
        mib / near(host, "in", address, size),
        mib / near(host, "out", address, size),
        near(host, "trip", address, ROUND_TRIPS) * 1000,
        ping(host, address),
    )


def near(host: Host, what: str, address: str, size: int) -> float:
    done = host.run([sys.executable, "-c", NEAR, what, address, str(size)], within=600)
    assert done.returncode == 0, done.stderr.decode()
    return float(done.stdout)


def ping(host: Host, address: str) -> float:
    done = host.run(["busybox", "ping", "-c", "20", "-i", "0.05", address])
    found = re.findall(r"time=([\d.]+) ms", done.stdout.decode())
    assert found, (done.stdout.decode(), done.stderr.decode())
    return statistics.median(map(float, found))


@contextmanager
def veth(host: Host, network: cni.Network) -> Iterator[str]:
    """The far end as a process of the host."""
    with cni.namespace(host, "plain", network) as space:
        server = host.spawn(
            ["ip", "netns", "exec", "plain", "busybox", "sh", "-c", SERVE.replace("nc ", "busybox nc ")]
        )
        try:
            yield address_of(host, space)
        finally:
            host.run(["sh", "-c", "kill $(ip netns pids plain)"])
            process.finish(server)


@contextmanager
def pod(host: Host, ctr: Ctr, network: cni.Network, model: str, directory: Path) -> Iterator[str]:
    """The far end as a container."""
    config = directory / f"{model}.toml"
    config.write_text(f'[runtime]\ninternetworking_model = "{model}"\n{BOOTED}')
    with cni.namespace(host, model, network) as space:
        ctr.start(model, "sh", "-c", SERVE, options=cni.words([space.path]), config=config)
        try:
            address = address_of(host, space)
            eventually("the pod answers", lambda: host.run(answers(address)).returncode == 0, within=30 * SCALE)
            yield address
        finally:
            ctr.remove(model)


def answers(address: str) -> list[str]:
    return ["busybox", "nc", "-w", "2", address, str(ECHO), "-e", "true"]


def address_of(host: Host, space: cni.Namespace) -> str:
    found = re.search(r"inet ([\d.]+)/", cni.ip(host, "addr", "show", "eth0", netns=space.name))
    assert found is not None
    return found[1]


def table(rounds: Mapping[str, Sequence[Figures]]) -> str:
    """Medians, and how they compare with the veth pair's, which comes first."""
    parts: tuple[tuple[str, str, Callable[[Figures], float], bool], ...] = (
        ("TCP into the pod", "MiB/s", lambda f: f.into, True),
        ("TCP out of the pod", "MiB/s", lambda f: f.out, True),
        ("TCP round trip", "ms", lambda f: f.trip_ms, False),
        ("ICMP round trip", "ms", lambda f: f.ping_ms, False),
    )
    names = list(rounds)
    lines = [f"| what | {' | '.join(names)} |", "| --- |" + " --- |" * len(names)]
    for title, unit, value, more_is_better in parts:
        medians = [statistics.median(map(value, rounds[name])) for name in names]
        cells = [f"{median:.3g} {unit}{share(median, medians[0], more_is_better)}" for median in medians]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def conditions(arguments: argparse.Namespace, loads: Sequence[float]) -> str:
    """What the figures hold for: without it they say little."""
    words = f"--runs {arguments.runs} --mib {arguments.mib} --models {arguments.models}"
    load = f"load {min(loads):.1f} to {max(loads):.1f}, {statistics.median(loads):.1f} in the middle"
    runs = f"The middle of {arguments.runs} runs, each of {arguments.mib} MiB both ways, {ROUND_TRIPS} round trips and 20 pings."
    return f"{versions.line()}, {load}, by `python3 -m integration.bench.network {words}`. {runs}"


def share(value: float, plain: float, more_is_better: bool) -> str:
    if value == plain:
        return ""
    return f" (÷ {plain / value:.1f})" if more_is_better else f" (× {value / plain:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--mib", type=int, default=64)
    parser.add_argument("--models", default="tcfilter,macvtap")
    arguments = parser.parse_args()
    process.become_subreaper()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kb-", dir="/tmp")))
        host = stack.enter_context(Host([PREFIX / "bin"]))
        ctr = Ctr(stack.enter_context(Containerd(host)), "bench", image=image.NAME)
        image.write_image(directory / "image.tar")
        ctr("image", "import", directory / "image.tar").ok()
        network = cni.bridge(host, "kt0", SUBNET)
        ends = {"veth pair": stack.enter_context(veth(host, network))}
        for model in arguments.models.split(","):
            ends[model] = stack.enter_context(pod(host, ctr, network, model, directory))
        rounds: dict[str, list[Figures]] = {name: [] for name in ends}
        loads = [os.getloadavg()[0]]
        for _ in range(arguments.runs):
            for name, address in ends.items():
                rounds[name].append(measure(host, address, arguments.mib))
                loads.append(os.getloadavg()[0])
        print(f"{conditions(arguments, loads)}\n\n{table(rounds)}")


if __name__ == "__main__":
    main()
