"""A second container in a running pod, and an exec, beside crun by hand in the same guest and runc on the host; what a pod weighs.

    python -m integration.bench.inside [--runs 11] [--quick] [--prefix DIR]

Each round runs, in turn: our second container, from Create to its first byte; crun's, by hand, in a container of the same guest
that may do everything; runc's on the host; and the same of an exec. crun's time is told by the guest's clock, from before crun is
started to when the process it made reads that clock, in steps of 10 ms; it makes no control group, for a container has none to
give. So the ratio is, if anything, too hard on us. Memory is PSS, by part, of a pod that has booted and does nothing.
"""

import argparse
import asyncio
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final, Self

from integration.bench.coldstart import row
from integration.bench.start import pss
from integration.harness import process
from integration.harness.image import IMAGE_PATH, write_rootfs
from integration.harness.pods import BOOTED, Pod, pod_hash
from kata_shimd import wire
from kata_shimd.api import containerd_types, wkt
from kata_shimd.api.descriptors import MethodDescriptor
from kata_shimd.api.services import task_v2
from kata_shimd.errors import ShimError
from kata_shimd.ttrpc import Client

NAMESPACE: Final = "bench"
POD: Final = "p"
TOOL: Final = "tool"
NOTES: Final = "io.kubernetes.cri"
AIM: Final = 1.3
#: What every measured container and exec does.
FIRST: Final = ("cat", "/proc/uptime")
KEPT: Final = ("sleep", "86400")
#: crun and its libraries into memory: from a shared directory they would load more slowly than the agent's do.
PREPARE: Final = "mkdir /tmp/p && cp $(find /lib/ /usr/lib/ -name '*.so.*') /usr/bin/crun /tmp/p/"
#: In the guest: crun by hand, its answer behind the time before it. `$1` is the verb with its arguments.
BY_HAND: Final = (
    "read begun _ < /proc/uptime; LD_LIBRARY_PATH=/tmp/p /tmp/p/crun --cgroup-manager=disabled --root /tmp/crun $* 2>&1; "
    "echo begun $begun"
)


def config(args: Sequence[str], *, member: bool = True, everything: bool = False) -> dict[str, Any]:
    """A spec; with ``everything`` of a container that may run crun."""
    kinds = ["pid", "mount", "uts", "ipc", *([] if everything else ["network"])]
    process: dict[str, Any] = {"args": list(args), "cwd": "/", "env": [IMAGE_PATH]}
    mounts: list[dict[str, Any]] = [{"destination": "/proc", "type": "proc", "source": "proc"}]
    mounts += [{"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]}]
    if everything:
        capabilities = [f"CAP_{name}" for name in _capabilities()]
        process["capabilities"] = dict.fromkeys(("bounding", "permitted", "effective", "inheritable"), capabilities)
        mounts += [{"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"}]
        mounts += [{"destination": "/sys", "type": "sysfs", "source": "sysfs"}]
        mounts += [{"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["rw"]}]
    spec = {"ociVersion": "1.0.2", "process": process, "root": {"path": "rootfs"}, "mounts": mounts}
    notes = {f"{NOTES}.container-type": "container", f"{NOTES}.sandbox-id": POD} if member else {}
    return {**spec, "annotations": notes, "linux": {"namespaces": [{"type": kind} for kind in kinds]}}


def _capabilities() -> list[str]:
    said = subprocess.run(["setpriv", "--list-caps"], capture_output=True, text=True, check=True).stdout
    return [name.upper() for name in said.split() if not name.startswith("cap_")]


class Guest:
    """A pod that has booted, and its one connection. Use as ``async with``."""

    def __init__(self, prefix: Path, root: Path) -> None:
        self._launcher, self.root = prefix / "bin/containerd-shim-kata-v2", root
        self._address = str(root / "c.sock")
        self.pod = Pod(root / "k", pod_hash(self._address, NAMESPACE, POD))
        self._rootfs = root / "rootfs"

    async def __aenter__(self) -> Self:
        self._rootfs.mkdir()
        write_rootfs(self._rootfs)
        self._verb(self.bundle(POD, config(KEPT, member=False)), "start")
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(self.pod.directory / "shim.sock"))
        self.client = await Client(sock).__aenter__()
        await self.create(POD)
        await self.call(task_v2.START, POD)
        return self

    async def __aexit__(self, *_: object) -> None:
        with suppress(ShimError):
            await self.remove(POD)
            await self.call(task_v2.SHUTDOWN, POD)
        await self.client.__aexit__(None, None, None)
        self._verb(self.root / "b" / POD, "-bundle", str(self.root / "b" / POD), "delete")

    def bundle(self, name: str, spec: Mapping[str, Any]) -> Path:
        path = self.root / "b" / name
        (path / "rootfs").mkdir(parents=True, exist_ok=True)
        (path / "config.json").write_text(json.dumps(spec))
        return path

    async def call(self, rpc: MethodDescriptor[Any, Any], name: str, **fields: Any) -> Any:
        raw = await self.client.call(rpc.service, rpc.name, wire.encode(rpc.request(id=name, **fields)), timeout=300)
        return wire.decode(rpc.response, raw)

    async def create(self, name: str, *, rootfs: Path | None = None, stdout: str = "") -> None:
        source = str(rootfs or self._rootfs)
        mount = containerd_types.Mount(type="bind", source=source, options=["rbind"])
        await self.call(task_v2.CREATE, name, bundle=str(self.root / "b" / name), rootfs=[mount], stdout=stdout)

    async def remove(self, name: str) -> None:
        with suppress(ShimError):  # it has ended by itself
            await self.call(task_v2.KILL, name, signal=9, all=True)
        await self.call(task_v2.WAIT, name)
        await self.call(task_v2.DELETE, name)

    async def second(self, name: str) -> float:
        """Seconds from Create to the first byte of a further container."""
        self.bundle(name, config(FIRST))
        with Output(self.root / f"{name}.out") as output:
            begin = time.perf_counter()
            await self.create(name, stdout=str(output.path))
            await self.call(task_v2.START, name)
            await output.first()
            took = time.perf_counter() - begin
        await self.remove(name)
        return took

    async def exec(self, exec_id: str, container: str = POD, args: Sequence[str] = FIRST) -> tuple[float, str]:
        """Seconds from Exec to the first byte, and all that it said."""
        process = json.dumps({"args": list(args), "cwd": "/", "env": [IMAGE_PATH]}).encode()
        spec = wkt.Any(type_url="types.containerd.io/opencontainers/runtime-spec/1/Process", value=process)
        with Output(self.root / f"{exec_id}.out") as output:
            begin = time.perf_counter()
            await self.call(task_v2.EXEC, container, exec_id=exec_id, stdout=str(output.path), spec=spec)
            await self.call(task_v2.START, container, exec_id=exec_id)
            said = await output.first()
            took = time.perf_counter() - begin
            await self.call(task_v2.WAIT, container, exec_id=exec_id)
            said += await output.rest()
        await self.call(task_v2.DELETE, container, exec_id=exec_id)
        return took, said

    def _verb(self, bundle: Path, *words: str) -> None:
        flags = ["-namespace", NAMESPACE, "-address", self._address, "-publish-binary", "x", "-id", POD]
        config = self.root / "booted.toml"
        config.write_text(BOOTED)
        env = {**os.environ, "KATA_SHIMD_RUN_DIR": str(self.root / "k"), "KATA_CONF_FILE": str(config)}
        argv = [str(self._launcher), *flags, *words]
        subprocess.run(argv, cwd=bundle, env=env, stdin=subprocess.DEVNULL, capture_output=True, check=True)


class Output:
    """A FIFO that a process writes to."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Self:
        os.mkfifo(self.path, 0o600)
        self._fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
        self.path.unlink()

    async def first(self) -> str:
        loop, come = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._fd, come.set)
        try:
            await come.wait()
        finally:
            loop.remove_reader(self._fd)
        return os.read(self._fd, 1 << 16).decode()

    async def rest(self) -> str:
        """What comes until the other end is closed."""
        said = ""
        while more := await self.first():
            said += more
        return said


class ByHand:
    """crun in the guest, in a container with all it needs; ``kept`` is a container of crun's own, for execs."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._rootfs = guest.root / "tool"

    async def begin(self) -> None:
        write_rootfs(self._rootfs)
        add_program(self._rootfs, "crun")
        for name, args in (("first", FIRST), ("kept", KEPT)):
            (bundle := self._rootfs / name / "rootfs").mkdir(parents=True)
            write_rootfs(bundle)
            spec = config(args, member=False)
            spec["linux"]["namespaces"].remove({"type": "network"})  # nor has ours one of its own
            (bundle.parent / "config.json").write_text(json.dumps(spec))
        self._guest.bundle(TOOL, config(KEPT, everything=True))
        await self._guest.create(TOOL, rootfs=self._rootfs)
        await self._guest.call(task_v2.START, TOOL)
        _, said = await self._guest.exec("prepare", TOOL, ("sh", "-c", f"{PREPARE} 2>&1 && echo done"))
        if said != "done\n":
            raise RuntimeError(f"crun by hand: {said}")
        # Its streams are a file's: a container that stays would keep the exec's open.
        script = BY_HAND.replace("2>&1", "> /tmp/log 2>&1 < /dev/null")
        words = ("run", "--detach", "--bundle", "/kept", "kept")
        _, said = await self._guest.exec("kept", TOOL, ("sh", "-c", f"{script}; cat /tmp/log", "sh", *words))
        if not re.fullmatch(r"begun [\d.]+\s*", said):
            raise RuntimeError(f"crun by hand: {said}")

    async def run(self, name: str) -> float:
        return await self._measured(name, "run", "--bundle", "/first", name)

    async def exec(self, name: str) -> float:
        return await self._measured(name, "exec", "kept", *FIRST)

    async def end(self) -> None:
        await self._guest.remove(TOOL)

    async def _measured(self, name: str, *words: str) -> float:
        _, said = await self._guest.exec(name, TOOL, ("sh", "-c", BY_HAND, "sh", *words))
        ended, begun = re.match(r"([\d.]+)", said), re.search(r"begun ([\d.]+)", said)
        if ended is None or begun is None:
            raise RuntimeError(f"crun by hand: {said}")
        return float(ended[1]) - float(begun[1])


def add_program(rootfs: Path, name: str) -> None:
    """Copy a program of the host's, with its libraries, into a tree."""
    found = shutil.which(name)
    assert found is not None, f"{name} is not on the PATH"
    listed = subprocess.run(["ldd", found], capture_output=True, text=True, check=True).stdout
    for path in [found, *re.findall(r"(/\S+) \(0x", listed)]:
        target = rootfs / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(os.path.realpath(path), target)


class OnHost:
    """runc on the host, to the same rootfs."""

    def __init__(self, guest: Guest) -> None:
        self._guest, self._state = guest, str(guest.root / "runc")

    def begin(self) -> None:
        for name, args in (("hfirst", FIRST), ("hkept", KEPT)):
            bundle = self._guest.bundle(name, config(args))
            write_rootfs(bundle / "rootfs")
        self._runc("run", "--detach", "--bundle", str(self._guest.root / "b/hkept"), "hkept")

    def end(self) -> None:
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


def _weight(pod: Pod, what: str) -> float:
    """Megabytes of a part of the pod. virtiofsd serves in a child; the daemon's children are the other parts."""
    part = pod.process(what)
    children = [] if what == "daemon" else process.descendants(part.pid)
    return sum(pss(one.pid) for one in (part, *children))


async def measure(prefix: Path, root: Path, rounds: int) -> tuple[Mapping[str, list[float]], Mapping[str, float]]:
    """Seconds of each way, a value a round; megabytes of each part of the pod."""
    async with Guest(prefix, root) as guest:
        memory = {what: _weight(guest.pod, what) for what in ("daemon", "qemu", "virtiofsd")}
        hand, host = ByHand(guest), OnHost(guest)
        with ExitStack() as ends:
            host.begin()
            ends.callback(host.end)
            await hand.begin()
            try:
                return await _rounds(guest, hand, host, rounds), memory
            finally:
                await hand.end()


async def _rounds(guest: Guest, hand: ByHand, host: OnHost, rounds: int) -> dict[str, list[float]]:
    async def ours(number: int) -> float:
        return (await guest.exec(f"e{number}"))[0]

    async def runc_run(number: int) -> float:
        return await asyncio.to_thread(host.run, f"h{number}")

    async def runc_exec(_number: int) -> float:
        return await asyncio.to_thread(host.exec)

    ways: dict[str, Callable[[int], Awaitable[float]]] = {
        "second container": lambda number: guest.second(f"s{number}"),
        "crun run, in the guest": lambda number: hand.run(f"r{number}"),
        "runc run, on the host": runc_run,
        "exec": ours,
        "crun exec, in the guest": lambda number: hand.exec(f"x{number}"),
        "runc exec, on the host": runc_exec,
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name, way in ways.items():
            taken[name].append(await way(number))
    return taken


def table(taken: Mapping[str, Sequence[float]], memory: Mapping[str, float]) -> str:
    rows = ["| what | median s | IQR s | n |", "| --- | --- | --- | --- |"]
    rows += [row(name, values) for name, values in taken.items()]
    rows += ["", "| ratio | median | aim |", "| --- | --- | --- |"]
    for ours, theirs in (("second container", "run"), ("exec", "exec")):
        for place, aim in ((f"crun {theirs}, in the guest", f"≤ {AIM}"), (f"runc {theirs}, on the host", "")):
            ratio = statistics.median(a / b for a, b in zip(taken[ours], taken[place], strict=True))
            rows.append(f"| {ours} ÷ {place} | {ratio:.2f} | {aim} |")
    rows += ["", "| memory of a pod | PSS, MB |", "| --- | --- |"]
    return "\n".join([*rows, *(f"| {what} | {size:.1f} |" for what, size in memory.items())])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=11)
    parser.add_argument("--quick", action="store_true", help="one round, to see that it works")
    parser.add_argument("--prefix", type=Path, default=Path(os.environ.get("KATA_SHIMD_PREFIX", "/opt/kata-shimd")))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ki-", dir="/tmp") as root:
        taken, memory = asyncio.run(measure(arguments.prefix, Path(root), 1 if arguments.quick else arguments.runs))
    print(table(taken, memory))


if __name__ == "__main__":
    main()
