"""Makes docs/soak.md from what one run measured."""

import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from integration.soak import soak
from kata_shimd import __version__
from kata_shimd.vm import accel

PATH: Final = Path(__file__).parents[2] / "docs/soak.md"
HEAD: Final = """\
<!-- made by `integration/long soak`; do not edit -->

# Soak

What only shows after a while: many containers made and removed in one pod, many pods one after the other, by `ctr` on a real
containerd and real virtual machines. After each container the daemon is looked at from outside; it is flat when, once it is warm,
it has no descriptor and no thread more than before, and has not grown by more than {most:g} KiB a container. After each pod the
host is compared with what it was before: processes, mounts, links, cgroups, files, descriptors of containerd.

The short form is `integration/soak/test_soak.py`. Tasks of the daemon's event loop cannot be seen from outside: that a container
that was removed leaves none is `kata_shimd/task/test_service.py`'s.
"""


def page(samples: Sequence[soak.Sample], seconds: Sequence[float], found: Sequence[str]) -> str:
    """The whole page, its verdict included."""
    verdict = "\n".join(f"- {complaint}" for complaint in found) or "Flat, and nothing left behind."
    parts = [
        HEAD.format(most=soak.MOST_KIB),
        "## The last run",
        f"{_when()}.",
        verdict,
        containers(samples),
        pods(seconds),
    ]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def containers(samples: Sequence[soak.Sample]) -> str:
    """Some of the samples as a table."""
    if not samples:
        return ""
    step = max(1, len(samples) // 8)
    shown = [sample for sample in samples if sample.number in (1, soak.WARM, len(samples)) or sample.number % step == 0]
    rows = [f"| {one.number} | {one.fds} | {one.threads} | {one.pss_kib} | {one.seconds:.2f} |" for one in shown]
    head = ["| Containers so far | Descriptors | Threads | Memory (PSS), KiB | `ctr run`, s |", "|---|---|---|---|---|"]
    return "\n".join([*head, *rows])


def pods(seconds: Sequence[float]) -> str:
    """How long they took."""
    if not seconds:
        return ""
    middle = sorted(seconds)[len(seconds) // 2]
    return (
        f"{len(seconds)} pods in sequence, each left nothing: `ctr run` took {min(seconds):.2f} s at least, "
        f"{middle:.2f} s in the middle, {max(seconds):.2f} s at most."
    )


def _when() -> str:
    today, accelerator = datetime.now(UTC).date().isoformat(), accel.choose(accel.Setting.AUTO).accelerator
    said = [_first_line(*argv) for argv in (("containerd", "--version"), ("qemu-system-x86_64", "--version"))]
    own = f"kata-shimd {__version__}, Python {platform.python_version()}"
    return f"{today}: {own}, {', '.join(said)}, {accelerator}, {os.cpu_count()} CPUs"


def _first_line(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()[0]
