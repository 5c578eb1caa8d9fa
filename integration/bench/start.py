"""The `start` verb of a new pod and of a further container beside containerd-shim-runc-v2's, and what a daemon weighs.

    python -m integration.bench.start [--runs 21] [--quick] [--pods 0] [--prefix DIR]

Each round runs, in turn: runc's `start`; ours with a cold interpreter; ours with a fork of the zygote, made when it is asked; ours
with the child that the zygote forks ahead; and ours for a further container of that pod. Every pod is deleted before the next is
measured, so that no machine boots beside it. All of it has a mount namespace of its own, in which /run is in memory as on a node:
there lie everybody's sockets, and bundles. ``--pods N`` then starts N pods from the zygote, weighs their daemons (PSS, the zygote's
own shared out among them), and times the last `start` beside the first.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from integration.bench.coldstart import row
from integration.harness import pods, process
from integration.harness.pods import BOOTED
from integration.harness.waiting import eventually

NAMESPACE: Final = "bench"
NOTES: Final = "io.kubernetes.cri"
#: Set in the process whose /run is in memory.
_IN_MEMORY: Final = "KATA_SHIMD_BENCH_RUN"
#: poll(2), as /proc/PID/syscall has it on x86-64 and arm64.
_POLL: Final = ("7", "73")
AIMS: Final = {"zygote ÷ runc's": 0.7, "further container ÷ runc's": 0.25, "start of the last pod ÷ the first": 1.2}
PSS_AIM_MB: Final = 6.0


class Node:
    """A run directory, bundles and a launcher; containerd is nobody."""

    def __init__(self, root: Path, prefix: Path, runc: Path) -> None:
        self.root, self.prefix, self.runc = root, prefix, runc
        self.run_dir = root / "k"
        self.address = str(root / "c.sock")
        (root / "booted.toml").write_text(BOOTED)

    def bundle(self, name: str, sandbox: str) -> Path:
        path = self.root / "b" / name
        path.mkdir(parents=True, exist_ok=True)
        kind = "sandbox" if name == sandbox else "container"
        annotations = {f"{NOTES}.container-type": kind, f"{NOTES}.sandbox-id": sandbox}
        spec = {"ociVersion": "1.0.2", "annotations": annotations, "linux": {"namespaces": [{"type": "network"}]}}
        (path / "config.json").write_text(json.dumps(spec))
        return path

    def verb(self, binary: Path, name: str, bundle: Path, *words: str, **env: str) -> float:
        """Seconds one verb took."""
        argv = [
            str(binary),
            "-namespace",
            NAMESPACE,
            "-address",
            self.address,
            "-publish-binary",
            "x",
            "-id",
            name,
            *words,
        ]
        config = self.root / "booted.toml"
        environ = {**os.environ, "KATA_SHIMD_RUN_DIR": str(self.run_dir), "KATA_CONF_FILE": str(config), **env}
        begin = time.perf_counter()
        subprocess.run(argv, cwd=bundle, env=environ, stdin=subprocess.DEVNULL, capture_output=True, check=True)
        return time.perf_counter() - begin

    @property
    def launcher(self) -> Path:
        return self.prefix / "bin/containerd-shim-kata-v2"

    def start(self, name: str, sandbox: str = "", **env: str) -> float:
        return self.verb(self.launcher, name, self.bundle(name, sandbox or name), "start", **env)

    def delete(self, name: str) -> None:
        """Told to end, for a pod in which nothing was created waits a while for what may still come."""
        bundle = self.root / "b" / name
        self.pod(name).process("daemon").signal(signal.SIGTERM)
        self.verb(self.launcher, name, bundle, "-bundle", str(bundle), "delete")
        eventually(f"{name} gone", lambda: not self.pod(name).directory.exists(), within=60)

    def pod(self, name: str) -> pods.Pod:
        return pods.Pod(self.run_dir, pods.pod_hash(self.address, NAMESPACE, name))

    def runc_start(self, name: str) -> float:
        """runc's shim, ended again: it would wait for its first container."""
        bundle = self.bundle(name, name)
        before = set(process.descendants())
        took = self.verb(self.runc, name, bundle, "start", TTRPC_ADDRESS=f"{self.address}.ttrpc")
        for left in set(process.descendants()) - before:
            left.kill()
        process.reap_orphans()
        address = (bundle / "address").read_text()
        Path(address.removeprefix("unix://")).unlink(missing_ok=True)
        return took

    def ahead(self, zygote: int) -> process.Process:
        """The child that the zygote forks ahead, once it waits."""
        children = Path(f"/proc/{zygote}/task/{zygote}/children")

        def waiting() -> list[process.Process]:
            return [child for pid in children.read_text().split() if (child := _waiting(int(pid)))]

        return eventually("a child ahead", waiting, within=30)[0]

    def without_ahead(self, zygote: int) -> None:
        """The next request finds no child that was forked ahead."""
        child = self.ahead(zygote)
        child.kill()
        eventually("its end", lambda: not child.alive(), within=30)

    @contextmanager
    def zygote(self) -> Iterator[int]:
        """The zygote's pid."""
        argv = [self.prefix / "bin/python3", "-m", "kata_shimd.cli", "zygote", "--run-dir", self.run_dir]
        child = process.spawn([str(word) for word in argv], stderr=subprocess.DEVNULL)
        try:
            eventually("the zygote", (self.run_dir / "zygote.sock").exists, within=30)
            yield child.pid
        finally:
            process.finish(child)


OURS: Final = ("cold", "zygote, when asked", "zygote", "further container")


def _waiting(pid: int) -> process.Process | None:
    """The process, if it is a child that was forked ahead and has nothing to do but wait."""
    with suppress(OSError):
        proc = Path(f"/proc/{pid}")
        if (proc / "comm").read_text() == "kata-spare\n" and (proc / "syscall").read_text().split()[0] in _POLL:
            return process.find(pid)
    return None


def measure(node: Node, rounds: int) -> Mapping[str, Sequence[float]]:
    """Seconds of each way, a value a round."""
    taken: dict[str, list[float]] = {name: [] for name in ("runc's", *OURS)}
    with node.zygote() as zygote:
        for number in range(rounds):
            taken["runc's"].append(node.runc_start(f"r{number}"))
            taken["cold"].append(node.start(f"c{number}", KATA_SHIMD_NO_ZYGOTE="1"))
            node.delete(f"c{number}")
            node.without_ahead(zygote)
            taken["zygote, when asked"].append(node.start(f"a{number}"))
            node.delete(f"a{number}")
            node.ahead(zygote)
            taken["zygote"].append(node.start(f"z{number}"))
            taken["further container"].append(node.start(f"m{number}", sandbox=f"z{number}"))
            node.delete(f"z{number}")
    return taken


def table(taken: Mapping[str, Sequence[float]]) -> str:
    milliseconds = {name: [1000 * value for value in values] for name, values in taken.items()}
    rows = ["| `start` | median ms | IQR ms | n |", "| --- | --- | --- | --- |"]
    rows += [row(name, values) for name, values in milliseconds.items()]
    rows += ["", "| ratio | median | aim |", "| --- | --- | --- |"]
    for name in OURS:
        ratio = statistics.median(ours / its for ours, its in zip(taken[name], taken["runc's"], strict=True))
        rows.append(f"| {name} ÷ runc's | {ratio:.2f} | {_aim(f'{name} ÷ runc' + chr(39) + 's')} |")
    return "\n".join(rows)


def _aim(name: str) -> str:
    return f"≤ {AIMS[name]}" if name in AIMS else ""


def weigh(node: Node, count: int) -> str:
    """``count`` pods at once: what their daemons weigh, and what the last start cost."""
    names = [f"w{number}" for number in range(count)]
    with node.zygote() as zygote:
        try:
            took = [_settled(node, name) for name in names]
            daemons = [pss(node.pod(name).process("daemon").pid) for name in names]
            own = pss(zygote)
        finally:
            for name in names:
                if (node.root / "b" / name).exists():
                    node.delete(name)
    each = (sum(daemons) + own) / count
    rows = [
        "| what | MB |",
        "| --- | --- |",
        f"| a daemon's PSS at {count} pods, median | {statistics.median(daemons):.1f} |",
    ]
    rows += [f"| the zygote's PSS | {own:.1f} |", f"| both, per pod (aim ≤ {PSS_AIM_MB:g}) | {each:.1f} |", ""]
    last = "start of the last pod ÷ the first"
    return "\n".join([*rows, f"{last}: {took[-1] / took[0]:.2f} (aim {_aim(last)})"])


def _settled(node: Node, name: str) -> float:
    """Start a pod, and wait until its agent answers: what is weighed has booted, and the next starts on a quiet machine."""
    took = node.start(name)
    eventually(
        f"{name} up", lambda: any(event["event"] == "agent-ready" for event in node.pod(name).journal()), within=300
    )
    return took


def pss(pid: int) -> float:
    """Megabytes (10^6 bytes) of a process, shared pages by share."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    values: dict[str, Any] = dict(line.split(":", 1) for line in lines[1:])
    return int(values["Pss"].split()[0]) * 1024 / 1e6


def _with_run_in_memory() -> None:
    """Go on in a mount namespace of our own, in which nothing but what we make is in /run."""
    if _IN_MEMORY not in os.environ:
        environ = {**os.environ, _IN_MEMORY: "1"}
        argv = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs run /run && exec "$@"', "sh", sys.executable]
        os.execvpe(argv[0], [*argv, *sys.orig_argv[1:]], environ)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=21)
    parser.add_argument("--quick", action="store_true", help="one round, to see that it works")
    parser.add_argument("--pods", type=int, default=0, help="how many pods to weigh at once")
    parser.add_argument("--prefix", type=Path, default=Path(os.environ.get("KATA_SHIMD_PREFIX", "/opt/kata-shimd")))
    arguments = parser.parse_args()
    runc = shutil.which("containerd-shim-runc-v2")
    if runc is None:
        parser.error("containerd-shim-runc-v2 is not on the PATH")
    _with_run_in_memory()
    process.become_subreaper()
    with tempfile.TemporaryDirectory(prefix="ks-", dir="/run") as root:
        node = Node(Path(root), arguments.prefix, Path(runc))
        print(table(measure(node, 1 if arguments.quick else arguments.runs)))
        if arguments.pods:
            print("\n" + weigh(node, arguments.pods))


if __name__ == "__main__":
    main()
