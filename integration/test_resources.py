"""Stats, Update, Pause and Resume, against the guest's own control group files."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from integration.harness import shim
from integration.harness.ctr import PATIENCE, Ctr
from integration.harness.sandbox import Sandbox, sandbox, table
from integration.harness.shim import ShimSocket
from integration.harness.spec import Spec
from integration.harness.waiting import eventually
from kata_shimd import wire
from kata_shimd.api import cgroup1, cgroup2
from kata_shimd.errors import Code
from kata_shimd.task.stats import host_is_unified

MIB: Final = 1 << 20
#: Counters of execs, which come and go in the container's group while it is looked at.
NOISE: Final = 4 * MIB

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
def pod(ctr: Ctr, rootfs_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    with sandbox(ctr, "resources", rootfs_dir, tmp_path_factory.mktemp("spec")) as made:
        yield made


@pytest.fixture(scope="module")
def socket(pod: Sandbox) -> ShimSocket:
    return ShimSocket.of(pod.ctr, pod.id)


def limited(pod: Sandbox, *argv: str) -> Spec:
    """A container with limits that sees its control group, and a disk to read: the guest's own, number 254:0."""
    spec = pod.spec(*argv)
    options = ["nosuid", "noexec", "nodev", "relatime", "ro"]
    spec.content["mounts"].append(
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": options}
    )
    resources = spec.content["linux"]["resources"]
    resources["memory"] = {"limit": 64 * MIB, "reservation": 16 * MIB, "swap": 64 * MIB}
    resources["cpu"] = {"quota": 90_000, "period": 100_000}
    resources["pids"] = {"limit": 77}
    resources["devices"].append({"allow": True, "type": "b", "major": 254, "minor": 0, "access": "r"})
    spec.content["linux"]["devices"] = [{"path": "/dev/disk", "type": "b", "major": 254, "minor": 0}]
    return spec


def files(pod: Sandbox, container: str, *names: str) -> Mapping[str, str]:
    """Files of the container's control group, as it sees them itself."""
    script = "cd /sys/fs/cgroup; for f; do echo $f=$(cat $f); done"
    return table(pod.ctr.exec(container, pod.fresh("e"), "sh", "-c", script, "sh", *names).ok().out)


def key(text: str, name: str) -> int:
    """The number of one line of a file with lines ``name number``, joined to one line."""
    found = re.search(rf"(?:^| ){name}[ =](\d+)", text)
    assert found, f"no {name} in {text!r}"
    return int(found[1])


# --- Stats -----------------------------------------------------------------------------------------------------------

#: What is compared, in bytes, microseconds or one.
Counters = Mapping[str, int]


def told(socket: ShimSocket, container: str) -> Counters:
    """The counters of Stats, out of the message that the host's mode of control groups asks for."""
    packed = socket.call("Stats", id=container).stats
    version = "v2" if host_is_unified() else "v1"
    assert packed.type_url == f"io.containerd.cgroups.{version}.Metrics"
    if version == "v2":
        return _told_2(wire.unpack(packed, cgroup2.Metrics))
    return _told_1(wire.unpack(packed, cgroup1.Metrics))


def _told_1(made: Any) -> Counters:
    read = [entry.value for entry in made.blkio.io_service_bytes_recursive if entry.op == "Read" and entry.major == 254]
    return {
        "usage_usec": made.cpu.usage.total // 1000,
        "system_usec": made.cpu.usage.kernel // 1000,
        "nr_periods": made.cpu.throttling.periods,
        "memory": made.memory.usage.usage,
        "memory limit": made.memory.usage.limit,
        "memory peak": made.memory.usage.max,
        "swap limit": made.memory.swap.limit,
        "anon": made.memory.rss,
        "file": made.memory.cache,
        "pgfault": made.memory.pg_fault,
        "pids": made.pids.current,
        "pids limit": made.pids.limit,
        "read": sum(read),
        "oom_kill": made.memory_oom_control.oom_kill,
    }


def _told_2(made: Any) -> Counters:
    return {
        "usage_usec": made.cpu.usage_usec,
        "system_usec": made.cpu.system_usec,
        "nr_periods": made.cpu.nr_periods,
        "memory": made.memory.usage,
        "memory limit": made.memory.usage_limit,
        "memory peak": made.memory.max_usage,
        "swap limit": made.memory.swap_limit,
        "anon": made.memory.anon,
        "file": made.memory.file,
        "pgfault": made.memory.pgfault,
        "pids": made.pids.current,
        "pids limit": made.pids.limit,
        "read": sum(entry.rbytes for entry in made.io.usage if entry.major == 254),
        "oom_kill": made.memory_events.oom_kill,
    }


def found(pod: Sandbox, container: str) -> Counters:
    """The same out of the files."""
    names = "cpu.stat memory.current memory.max memory.peak memory.swap.max memory.stat memory.events pids.max io.stat"
    seen = files(pod, container, *names.split())
    io = re.search(r"254:0 (?:\w+=\d+ ?)+", seen["io.stat"])
    return {
        **{name: key(seen["cpu.stat"], name) for name in ("usage_usec", "system_usec", "nr_periods")},
        "memory": int(seen["memory.current"]),
        "memory limit": int(seen["memory.max"]),
        "memory peak": int(seen.get("memory.peak") or 0),
        "swap limit": int(seen["memory.swap.max"]),
        **{name: key(seen["memory.stat"], name) for name in ("anon", "file", "pgfault")},
        "pids limit": int(seen["pids.max"]),
        "read": key(io[0], "rbytes") if io else 0,
        "oom_kill": key(seen["memory.events"], "oom_kill"),
    }


#: It has used the processor, fills 8 MiB, has read 2 MiB of a disk, and is one process from then on.
BUSY: Final = (
    "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; head -c 8388608 /dev/zero > /run/fill;"
    "dd if=/dev/disk of=/dev/null bs=1M skip=3 count=2 2> /dev/null; touch /run/ready; exec sleep 86400"
)


@contextmanager
def busy(pod: Sandbox) -> Iterator[str]:
    with pod.running(limited(pod, "sh", "-c", BUSY)) as container:

        def ready() -> bool:
            return pod.ctr.exec(container, pod.fresh("e"), "test", "-e", "/run/ready").code == 0

        eventually("the container has done its work", ready, within=PATIENCE)
        yield container


def test_stats_are_those_of_the_guests_files(pod: Sandbox, socket: ShimSocket) -> None:
    """The files are read before and after: what only grows lies between, what is set is the same, the rest is near."""
    with busy(pod) as container:
        before, stats, after = found(pod, container), told(socket, container), found(pod, container)
    for name in ("memory limit", "swap limit", "pids limit", "oom_kill"):
        assert stats[name] == before[name], name
    for name in ("usage_usec", "system_usec", "nr_periods", "pgfault", "read", "memory peak"):
        assert before[name] <= stats[name] <= after[name], name
    for name in ("memory", "anon", "file"):
        low, high = sorted((before[name], after[name]))
        assert low - NOISE <= stats[name] <= high + NOISE, name
    assert stats["pids"] == 1
    assert (stats["memory limit"], stats["swap limit"], stats["pids limit"]) == (64 * MIB, 0, 77)
    assert stats["usage_usec"] > 1000 and stats["nr_periods"] > 0 and stats["read"] >= MIB
    assert stats["file"] >= 8 * MIB and stats["memory"] >= 8 * MIB


def test_stats_of_a_stopped_container(pod: Sandbox, socket: ShimSocket) -> None:
    """The last that were taken, until it is deleted; an OOM kill is among them."""
    spec = limited(pod, "sh", "-c", "head -c 100000000 /dev/zero | tail | wc -c")
    spec.content["linux"]["resources"]["memory"] = {"limit": 8 * MIB, "swap": 8 * MIB}
    with pod.running(spec) as container:
        socket.call("Wait", id=container)
        stats = told(socket, container)
        assert told(socket, container) == stats
    assert stats["oom_kill"] >= 1 and stats["usage_usec"] > 0 and stats["memory limit"] == 8 * MIB
    assert socket.code("Stats", id=container) is Code.NOT_FOUND


def test_stats_of_the_pod_itself(pod: Sandbox, socket: ShimSocket) -> None:
    assert told(socket, pod.id)["usage_usec"] > 0


def test_a_client_shows_the_metrics(pod: Sandbox) -> None:
    with busy(pod) as container:
        shown = pod.ctr("task", "metrics", container).ok().out
    assert container in shown and re.search(r"memory\.(usage_limit|limit_in_bytes|usage_in_bytes)\s+\d{7,}", shown), (
        shown
    )
    assert re.search(r"pids\.current\s+1\b", shown), shown


# --- Update ----------------------------------------------------------------------------------------------------------

LIMITS: Final = ("memory.max", "memory.low", "memory.swap.max", "cpu.max", "cpu.weight", "pids.max")


def update(socket: ShimSocket, container: str, resources: Mapping[str, Any]) -> Code:
    return socket.code("Update", id=container, resources=shim.json_any(shim.RESOURCES, resources))


@pytest.fixture(scope="module")
def container(pod: Sandbox) -> Iterator[str]:
    with pod.running(limited(pod, "sleep", "86400")) as made:
        yield made


def test_update_changes_the_guests_files(pod: Sandbox, socket: ShimSocket, container: str) -> None:
    resources = {
        "memory": {"limit": 96 * MIB, "reservation": 8 * MIB, "swap": 128 * MIB},
        "cpu": {"quota": 30_000, "period": 60_000, "shares": 4096, "cpus": "0-63"},
        "pids": {"limit": 55},
    }
    assert update(socket, container, resources) is Code.OK
    seen = files(pod, container, *LIMITS)
    assert seen["memory.max"] == str(96 * MIB) and seen["memory.low"] == str(8 * MIB)
    assert seen["memory.swap.max"] == str(32 * MIB)
    assert (seen["cpu.max"], seen["pids.max"]) == ("30000 60000", "55")
    assert seen["cpu.weight"] == str(1 + (4096 - 2) * 9999 // 262142)


def test_update_leaves_what_it_does_not_name(pod: Sandbox, socket: ShimSocket, container: str) -> None:
    before = files(pod, container, *LIMITS)
    assert update(socket, container, {"pids": {"limit": 44}}) is Code.OK
    assert files(pod, container, *LIMITS) == {**before, "pids.max": "44"}
    assert update(socket, container, {"memory": {"limit": -1, "swap": -1}, "pids": {"limit": -1}}) is Code.OK
    seen = files(pod, container, *LIMITS)
    assert (seen["memory.max"], seen["memory.swap.max"], seen["pids.max"]) == ("max", "max", "max")
    assert seen["cpu.max"] == before["cpu.max"]


@pytest.mark.parametrize(
    ("resources", "code"),
    [
        ({"memory": {"swappiness": 5}}, Code.UNIMPLEMENTED),
        ({"cpu": {"realtimeRuntime": 5}}, Code.UNIMPLEMENTED),
        ({"blockIO": {"leafWeight": 5}}, Code.UNIMPLEMENTED),
        ({"unified": {"memory.high": "5"}}, Code.UNIMPLEMENTED),
        ({"memory": {"limit": "much"}}, Code.INVALID_ARGUMENT),
    ],
)
def test_update_refuses_what_it_cannot_do(
    pod: Sandbox, socket: ShimSocket, container: str, resources: Mapping[str, Any], code: Code
) -> None:
    before = files(pod, container, *LIMITS)
    assert update(socket, container, {**resources, "pids": {"limit": 3}}) is code
    assert files(pod, container, *LIMITS) == before, "nothing of it was done"


def test_update_of_a_paused_container_and_of_a_stopped_one(pod: Sandbox, socket: ShimSocket) -> None:
    with pod.running(limited(pod, "sleep", "86400")) as made:
        socket.call("Pause", id=made)
        assert update(socket, made, {"pids": {"limit": 33}}) is Code.OK
        socket.call("Resume", id=made)
        assert files(pod, made, "pids.max") == {"pids.max": "33"}
        socket.call("Kill", id=made, signal=9)
        socket.call("Wait", id=made)
        assert update(socket, made, {"pids": {"limit": 3}}) is Code.FAILED_PRECONDITION


# --- Pause and Resume ------------------------------------------------------------------------------------------------

COUNT: Final = "while :; do echo >> /out/$1; done"
#: Work in another container by which the test knows that the guest's time has gone on.
CLOCK: Final = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done"


def test_a_paused_counter_stands_still_and_goes_on(pod: Sandbox, socket: ShimSocket) -> None:
    """Its first process and an exec; the pod's other containers run on."""
    directory = pod.directory_of("count")

    def ticks() -> list[int]:
        return [(directory / name).stat().st_size if (directory / name).exists() else 0 for name in ("init", "exec")]

    spec = pod.spec("sh", "-c", COUNT, "sh", "init")
    spec.content["mounts"].append(
        {"destination": "/out", "type": "bind", "source": str(directory), "options": ["rbind", "rw"]}
    )
    with pod.running(spec) as made:
        socket.call(
            "Exec",
            id=made,
            exec_id="x",
            spec=shim.json_any(shim.PROCESS, shim.process("sh", "-c", COUNT, "sh", "exec")),
        )
        socket.call("Start", id=made, exec_id="x")
        eventually("both count", lambda: all(ticks()), within=PATIENCE)
        pod.ctr("task", "pause", made).ok()
        stood = ticks()
        assert pod.ctr.tasks()[made][1] == "PAUSED"
        pod.ctr.exec(pod.id, pod.fresh("e"), "sh", "-c", CLOCK).ok()
        assert ticks() == stood
        pod.ctr("task", "resume", made).ok()
        assert pod.ctr.tasks()[made][1] == "RUNNING"
        eventually(
            "both go on", lambda: all(new > old for new, old in zip(ticks(), stood, strict=True)), within=PATIENCE
        )


def test_what_a_paused_container_answers(pod: Sandbox, socket: ShimSocket) -> None:
    exec_spec = shim.json_any(shim.PROCESS, shim.process("true"))
    with pod.running(limited(pod, "sleep", "86400")) as made:
        assert socket.code("Resume", id=made) is Code.FAILED_PRECONDITION
        socket.call("Pause", id=made)
        assert socket.code("Pause", id=made) is Code.FAILED_PRECONDITION
        assert socket.code("Exec", id=made, exec_id="x", spec=exec_spec) is Code.FAILED_PRECONDITION
        assert socket.code("Delete", id=made) is Code.FAILED_PRECONDITION
        assert told(socket, made)["pids"] == 1
        socket.call("Kill", id=made, signal=9)
        assert socket.call("Wait", id=made).exit_status == 137
        assert socket.code("Resume", id=made) is Code.FAILED_PRECONDITION
