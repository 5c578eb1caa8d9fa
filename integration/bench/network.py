"""Throughput and latency between a bridge and a pod, beside the same bridge and a plain veth pair.

The far end is the same static busybox each time: in a namespace behind a veth pair, then as a pod's container behind
each model. The near end is this program, inside the private host. Bulk is TCP; a round trip is one byte there and
back over TCP, and an ICMP echo. The far end starts a process for every connection; a first byte has gone there and back
before the clock starts, so that none of that is measured.
"""

import re
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from integration.bench.results import Claim, Group, Measured, Options, Series, in_tmp
from integration.harness import cni, image, process
from integration.harness.containerd import Containerd
from integration.harness.ctr import Ctr
from integration.harness.host import Host
from integration.harness.pods import BOOTED
from integration.harness.scale import SCALE
from integration.harness.waiting import eventually

PLAIN: Final = "veth pair"
MODELS: Final = ("tcfilter", "macvtap")
SUBNET: Final = "10.87.0.0/24"
SINK, SOURCE, ECHO = 5001, 5002, 5003  # as in NEAR
#: Takes everything, once it has said that it is there; gives without end; echoes: each to any number of clients in turn.
SERVE: Final = (
    f"nc -ll -p {SINK} -e sh -c 'printf x; exec cat > /dev/null' & "
    f"nc -ll -p {SOURCE} -e cat /dev/zero & exec nc -ll -p {ECHO} -e cat"
)

#: The near end: what to do, address, bytes. Prints seconds.
NEAR: Final = """
import socket, statistics, sys, time
what, address, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
s = socket.create_connection((address, {"in": 5001, "out": 5002, "trip": 5003}[what]), timeout=600)
s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
if what == "trip": s.sendall(b"x")
assert s.recv(1), "the far end closed the connection"
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
class Amount:
    """What a round sends each way in bulk, and how often it goes there and back: so much that its beginning counts for nothing."""

    mib: int
    trips: int


SMALL: Final = Amount(16, 1000)
#: A pair of veth is dozens of times as fast as an emulated machine.
LARGE: Final = Amount(1024, 10_000)
QUICK: Final = Amount(1, 20)


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one round: MiB/s into and out of the far end, and milliseconds for a round trip."""

    into: float
    out: float
    trip_ms: float
    ping_ms: float


PARTS: Final[tuple[tuple[str, str, Callable[[Figures], float]], ...]] = (
    ("TCP into the pod", "MiB/s", lambda figures: figures.into),
    ("TCP out of the pod", "MiB/s", lambda figures: figures.out),
    ("TCP round trip", "ms", lambda figures: figures.trip_ms),
    ("ICMP round trip", "ms", lambda figures: figures.ping_ms),
)


def measure(host: Host, address: str, amount: Amount) -> Figures:
    size = amount.mib << 20
    return Figures(
        amount.mib / near(host, "in", address, size),
        amount.mib / near(host, "out", address, size),
        near(host, "trip", address, amount.trips) * 1000,
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


def _ends(stack: ExitStack, prefix: Path, directory: Path) -> tuple[Host, dict[str, str]]:
    """The private host, and the address of each far end."""
    host = stack.enter_context(Host([prefix / "bin"]))
    ctr = Ctr(stack.enter_context(Containerd(host)), "bench", image=image.NAME)
    image.write_image(directory / "image.tar")
    ctr("image", "import", directory / "image.tar").ok()
    network = cni.bridge(host, "kt0", SUBNET)
    ends = {PLAIN: stack.enter_context(veth(host, network))}
    for model in MODELS:
        ends[model] = stack.enter_context(pod(host, ctr, network, model, directory))
    return host, ends


def amount_of(end: str) -> Amount:
    return LARGE if end == PLAIN else SMALL


def run(options: Options) -> Measured:
    with ExitStack() as stack:
        host, ends = _ends(stack, options.prefix, stack.enter_context(in_tmp()))
        rounds: dict[str, list[Figures]] = {name: [] for name in ends}
        for _ in range(options.rounds):
            for name, address in ends.items():
                rounds[name].append(measure(host, address, QUICK if options.quick else amount_of(name)))
    return {
        f"{name}: {what}": Series(unit, [value(one) for one in figures])
        for name, figures in rounds.items()
        for what, unit, value in PARTS
    }


GROUP: Final = Group(
    "network",
    "The network",
    f"""Between a bridge of the host and a pod, by either model, beside the same bridge and a plain veth pair: the far end is
the same busybox each time, and has answered once before the clock starts. Bulk is TCP, {SMALL.mib} MiB each way with a pod and
{LARGE.mib} MiB with the veth pair, so that either takes long enough; a round trip is one byte there and back over TCP, or an ICMP
echo: the median of {SMALL.trips}, of {LARGE.trips} with the veth pair, and of 20.""",
    run,
    tuple(
        Claim(f"{what}, {model} ÷ veth pair", f"{model}: {what}", f"{PLAIN}: {what}")
        for model in MODELS
        for what, _, _ in PARTS
    ),
)
