"""Makes containers and pods, and measures what each leaves behind in the daemon and on the host."""

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from integration.harness import leaks, pods
from integration.harness.ctr import PATIENCE, Ctr
from integration.harness.pods import Pod

_TYPE: Final = "io.kubernetes.cri.container-type"
_SANDBOX: Final = "io.kubernetes.cri.sandbox-id"
#: So many of the first containers fill caches and pools of the daemon, and do not count.
WARM: Final = 5
#: Objects that Python's collector knows, by which the daemon may grow in ten containers: not one that is forgotten in each.
MOST_OBJECTS: Final = 0.1
#: Blocks of Python's allocator, texts and numbers among them: as many a container, on top of what looking twice leaves itself.
MOST_BLOCKS, LOOKING = 0.1, 16
#: KiB a container by which the daemon's own memory may rise in the second half. Where no object and no block is left behind, what
#: rises is the part of the allocators' arenas that was in use at least once.
MOST_KIB: Final = 2.0
#: From so many samples on a slope can be told from a single step.
SLOPE: Final = 50

#: What the daemon holds, but for the library's bounded cache of split URIs, which has two more for each container at first.
_LOOK: Final = """
import gc, json, sys, urllib.parse
urllib.parse.clear_cache()
collected = gc.collect()
print(json.dumps([len(gc.get_objects()), sys.getallocatedblocks()]))
"""


@dataclass(frozen=True, slots=True)
class Objects:
    """What is alive in the daemon: objects that its collector knows, and blocks of its allocator."""

    tracked: int
    blocks: int


@dataclass(frozen=True, slots=True)
class Sample:
    """A process after the n-th container: open descriptors, threads; resident and proportional set size, and of these the memory
    that is its own and no file's, in KiB; how long that container took. ``objects``: at `marks` alone."""

    number: int
    fds: int
    threads: int
    rss_kib: int
    pss_kib: int
    own_kib: int
    seconds: float
    objects: Objects | None = None


def marks(count: int) -> tuple[int, int]:
    """After which containers the daemon is looked into: in the middle, warm by then, and at the end."""
    return max(min(WARM, count), count // 2), count


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
            seen = sample(daemon, number, done.seconds)
            yield replace(seen, objects=look(run_dir, pod)) if number in marks(count) else seen
    finally:
        ctr.remove(sandbox)


def look(run_dir: Path, pod: Pod) -> Objects:
    """By ``kata-shimd attach``, which is a person's way; twice, for the first leaves the modules that it needs, and a thread."""
    argv = [sys.executable, "-m", "kata_shimd.cli", "attach", pod.name, "--run-dir", str(run_dir)]
    for _ in range(2):
        done = subprocess.run(argv, input=_LOOK, capture_output=True, text=True, timeout=PATIENCE, check=True)
    return Objects(*json.loads(done.stdout))


def sample(proc: Path, number: int, seconds: float) -> Sample:
    rollup = dict(line.split(":", 1) for line in (proc / "smaps_rollup").read_text().splitlines()[1:])
    rss, pss, own = (int(rollup[name].split()[0]) for name in ("Rss", "Pss", "Pss_Anon"))
    return Sample(
        number,
        fds=len(list((proc / "fd").iterdir())),
        threads=len(list((proc / "task").iterdir())),
        rss_kib=rss,
        pss_kib=pss,
        own_kib=own,
        seconds=seconds,
    )


def complaints(samples: Sequence[Sample]) -> list[str]:
    """What grew between the warm daemon and the last container; empty is good."""
    return [*_more(samples), *_left(samples), *_risen(samples)]


def _more(samples: Sequence[Sample]) -> Iterator[str]:
    """Descriptors and threads: until somebody looks into the daemon, and from then on."""
    middle = marks(len(samples))[0]
    for first, last in ((samples[min(WARM, middle) - 1], samples[middle - 1]), (samples[middle], samples[-1])):
        for what, before, after in (("descriptors", first.fds, last.fds), ("threads", first.threads, last.threads)):
            if after > before:
                yield f"{what}: {before} after {first.number} containers, {after} after {last.number}"


def _left(samples: Sequence[Sample]) -> Iterator[str]:
    """Objects that are alive at the end and were not in the middle."""
    middle, last = (samples[number - 1] for number in marks(len(samples)))
    if middle.objects is None or last.objects is None:
        yield "nobody looked into the daemon"
        return
    made = last.number - middle.number
    if (more := last.objects.tracked - middle.objects.tracked) > MOST_OBJECTS * made:
        yield f"objects: {more} more after {made} more containers"
    if (more := last.objects.blocks - middle.objects.blocks) > LOOKING + MOST_BLOCKS * made:
        yield f"allocated blocks: {more} more after {made} more containers"


def slope(samples: Sequence[Sample]) -> float | None:
    """KiB a container by which the daemon's own memory rises in the second half; None of too few samples."""
    half = samples[marks(len(samples))[0] :]
    if len(half) < SLOPE:
        return None
    return statistics.linear_regression([one.number for one in half], [one.own_kib for one in half]).slope


def _risen(samples: Sequence[Sample]) -> Iterator[str]:
    if (rise := slope(samples)) is not None and rise > MOST_KIB:
        yield f"own memory: {rise:.2f} KiB a container in the second half, {MOST_KIB:g} are allowed"


def pods_in_sequence(ctr: Ctr, scene: leaks.Scene, count: int) -> Iterator[tuple[int, float]]:
    """Run ``count`` pods of one container, one after the other: (number, seconds of ``ctr run``). Each leaves nothing."""
    for number in range(1, count + 1):
        before = leaks.snapshot(scene)
        done = ctr.run(f"soak-pod-{number}", "sh", "-c", "exit 3")
        assert done.code == 3, done
        leaked = leaks.await_no_leak(scene, before)
        assert not leaked, leaks.report(leaked)
        yield number, done.seconds
