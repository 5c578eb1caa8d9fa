"""The `start` verb of a new pod and of a further container beside containerd-shim-runc-v2's.

Each round runs, in turn: runc's `start`; ours with a cold interpreter; ours with a fork of the zygote, made when it is asked; ours
with the child that the zygote forks ahead; and ours for a further container of that pod. Every pod is deleted before the next is
measured, so that no machine boots beside it. All of it has a mount namespace of its own, in which /run is in memory as on a node:
there lie everybody's sockets, and bundles.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from integration.bench.results import Claim, Group, Measured, Options, Series, in_tmp
from integration.bench.runc import binary, open_log
from integration.harness import pods, process
from integration.harness.pods import BOOTED
from integration.harness.waiting import eventually

NAMESPACE: Final = "bench"
NOTES: Final = "io.kubernetes.cri"
#: Set in the process whose /run is in memory.
_IN_MEMORY: Final = "KATA_SHIMD_BENCH_RUN"
#: poll(2), as /proc/PID/syscall has it on x86-64 and arm64.
_POLL: Final = ("7", "73")


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
        with self._runc_shim(name) as (took, _):
            return took

    def runc_weights(self, count: int) -> list[float]:
        """Megabytes of each of so many of runc's shims."""
        with ExitStack() as stack:
            shims = [stack.enter_context(self._runc_shim(f"r{number}"))[1] for number in range(count)]
            return [pss(shim.pid) for shim in shims]

    @contextmanager
    def _runc_shim(self, name: str) -> Iterator[tuple[float, process.Process]]:
        """How long its `start` took, and the shim."""
        bundle = self.bundle(name, name)
        log = open_log(bundle)
        before = set(process.descendants())
        took = self.verb(self.runc, name, bundle, "start", TTRPC_ADDRESS=f"{self.address}.ttrpc")
        made = set(process.descendants()) - before  # of which the zygote may have made some
        [shim] = [one for one in made if self.runc.name in one.command()]
        try:
            yield took, shim
        finally:
            shim.kill()
            process.reap_orphans()
            os.close(log)
            Path((bundle / "address").read_text().removeprefix("unix://")).unlink(missing_ok=True)

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


def settled(node: Node, name: str) -> float:
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


def with_run_in_memory() -> None:
    """Go on in a mount namespace of our own, in which nothing but what we make is in /run."""
    if _IN_MEMORY not in os.environ:
        environ = {**os.environ, _IN_MEMORY: "1"}
        argv = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs run /run && exec "$@"', "sh", sys.executable]
        os.execvpe(argv[0], [*argv, *sys.orig_argv[1:]], environ)


def place() -> str:
    """Where sockets and bundles are: on a node, in /run."""
    return "/run" if _IN_MEMORY in os.environ else "/tmp"


def run(options: Options) -> Measured:
    with in_tmp(place()) as root:
        taken = measure(Node(root, options.prefix, binary()), options.rounds)
    return {name: Series("ms", [1000 * value for value in values]) for name, values in taken.items()}


GROUP: Final = Group(
    "start",
    "The verb `start`",
    """How long containerd waits for `containerd-shim-kata-v2 start`, by each way there is, beside `containerd-shim-runc-v2
start`. Every pod is deleted before the next is measured, so that no machine boots beside it. "Zygote" is the
child that was forked and has rehearsed before, "when asked" a fork that is made for the request, as it is for pods that
come in quick succession.""",
    run,
    (
        Claim(
            "`start` verb, new pod, with zygote ÷ containerd-shim-runc-v2 `start`",
            "zygote",
            "runc's",
            0.7,
            limits="a child that was forked ahead has still to be woken, and begins a boot beside its answer",
        ),
        Claim("`start`, further container ÷ the same", "further container", "runc's", 0.25),
        Claim("`start` verb, new pod, forked when asked ÷ the same", "zygote, when asked", "runc's"),
        Claim("`start` verb, new pod, without zygote ÷ the same", "cold", "runc's"),
    ),
)
