"""Makes containers and pods, and measures what each leaves behind in the daemon and on the host."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from integration.harness import leaks, pods
from integration.harness.ctr import Ctr
from integration.harness.pods import Pod

_TYPE: Final = "io.kubernetes.cri.container-type"
_SANDBOX: Final = "io.kubernetes.cri.sandbox-id"
#: So many of the first containers fill caches and pools of the daemon, and do not count.
WARM: Final = 5
#: What the daemon may grow by for each container: the allocator's fragments, and not an object that was forgotten.
MOST_KIB: Final = 8.0


@dataclass(frozen=True, slots=True)
class Sample:
    """A process after the n-th container: open descriptors, threads, proportional set size in KiB; how long that one took."""

    number: int
    fds: int
    threads: int
    pss_kib: int
    seconds: float


def containers(ctr: Ctr, run_dir: Path, count: int) -> Iterator[Sample]:
    """Make and remove ``count`` containers in one pod; the daemon after each. The pod is gone in the end."""
    sandbox = "soak-sandbox"
    ctr.start(sandbox, "sh", "-c", "while :; do sleep 86400; done", annotations={_TYPE: "sandbox"})
    try:
        pod = Pod(run_dir, pods.pod_hash(str(ctr.containerd.address), ctr.namespace, sandbox))
        daemon = pod.process("daemon").proc
        notes = {_TYPE: "container", _SANDBOX: sandbox}
        for number in range(1, count + 1):
            done = ctr.run(f"soak-{number}", "sh", "-c", "echo out; echo err >&2; exit 3", annotations=notes)
            assert (done.code, done.out, done.err) == (3, "out", "err"), done
            yield sample(daemon, number, done.seconds)
    finally:
        ctr.remove(sandbox)


def sample(proc: Path, number: int, seconds: float) -> Sample:
    rollup = dict(line.split(":", 1) for line in (proc / "smaps_rollup").read_text().splitlines()[1:])
    return Sample(
        number,
        fds=len(list((proc / "fd").iterdir())),
        threads=len(list((proc / "task").iterdir())),
        pss_kib=int(rollup["Pss"].split()[0]),
        seconds=seconds,
    )


def complaints(samples: Sequence[Sample]) -> list[str]:
    """What grew between the warm daemon and the last container; empty is good."""
    warm, last = samples[min(WARM, len(samples)) - 1], samples[-1]
    found = []
    if last.fds > warm.fds:
        found.append(f"descriptors: {warm.fds} after {warm.number} containers, {last.fds} after {last.number}")
    if last.threads > warm.threads:
        found.append(f"threads: {warm.threads} after {warm.number} containers, {last.threads} after {last.number}")
    # A constant on top: what one allocation of an arena costs, whenever it comes.
    allowed = 2048 + MOST_KIB * (last.number - warm.number)
    if last.pss_kib - warm.pss_kib > allowed:
        found.append(f"memory: {last.pss_kib - warm.pss_kib} KiB more after {last.number}, {allowed:.0f} are allowed")
    return found


def pods_in_sequence(ctr: Ctr, scene: leaks.Scene, count: int) -> Iterator[tuple[int, float]]:
    """Run ``count`` pods of one container, one after the other: (number, seconds of ``ctr run``). Each leaves nothing."""
    for number in range(1, count + 1):
        before = leaks.snapshot(scene)
        done = ctr.run(f"soak-pod-{number}", "sh", "-c", "exit 3")
        assert done.code == 3, done
        leaked = leaks.await_no_leak(scene, before)
        assert not leaked, leaks.report(leaked)
        yield number, done.seconds
