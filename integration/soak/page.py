"""Makes docs/soak.md from the last results: ``python -m integration.soak.page > docs/soak.md``."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from integration.soak import results, soak

PATH: Final = Path(__file__).parents[2] / "docs/soak.md"
HEAD: Final = """\
<!-- made by `integration/long soak`; do not edit -->

# Soak

What only shows after a while: many containers made and removed in one pod, many pods one after the other, by `ctr` on a real
containerd and real virtual machines. After each pod the host is compared with what it was before: processes, mounts, links,
cgroups, files, descriptors of containerd.

After each container the daemon is looked at from outside, in the middle and at the end from inside (`kata-shimd attach`). Flat is:

- no descriptor and no thread more than after {warm} containers (and after the looking, which leaves a thread that listens);
- between the middle and the end, not one object of Python's more for every {objects:g} containers (*objects*: those its collector
  knows, after a collection; *blocks*: all that its allocator has given out, {looking} for the looking itself and one for every
  {blocks:g} containers allowed);
- in the second half the daemon's own memory rises by at most {most:g} KiB a container, as a line through all samples. RSS and PSS
  hold its own memory and the files it maps, and PSS their part by how many others of the machine map them too, which is why it goes
  up and down; where objects and blocks stay, own memory still rises a little: arenas of the allocators, used once.

The short form is `integration/soak/test_soak.py`. That a container that was removed leaves no task is
`kata_shimd/task/test_service.py`'s too.

Found by a soak, now `integration/test_virtiofsd_slow.py`: the 24th pod never ended, because the guest's kernel had killed its
process half-way out (see [guest-agent.md](guest-agent.md), storage).
"""


def page(kept: results.Results) -> str:
    """The whole page."""
    head = HEAD.format(
        warm=soak.WARM,
        objects=1 / soak.MOST_OBJECTS,
        blocks=1 / soak.MOST_BLOCKS,
        looking=soak.LOOKING,
        most=soak.MOST_KIB,
    )
    parts = [head]
    if half := kept.get("containers"):
        said = verdict(half["found"], half.get("slope"))
        parts += ["## Containers in one pod", f"{half['when']}.", table(half["rows"]), said]
    if half := kept.get("pods"):
        parts += ["## Pods in sequence", f"{half['when']}.", pods(half)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


COLUMNS: Final = (
    "Containers so far",
    "Descriptors",
    "Threads",
    "RSS, KiB",
    "PSS, KiB",
    "Own, KiB",
    "Objects",
    "Blocks",
    "`ctr run`, s",
)


def table(rows: Sequence[Sequence[object]]) -> str:
    head = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    return "\n".join([*head, *(f"| {' | '.join(map(str, row))} |" for row in rows)])


def verdict(found: Sequence[str], slope: float | None) -> str:
    said = [f"- {complaint}" for complaint in found] or ["Flat, and nothing left behind."]
    rise = [] if slope is None else ["", f"In the second half own memory rose by {slope:.2f} KiB a container."]
    return "\n".join([*said, *rise])


def pods(half: Mapping[str, Any]) -> str:
    """How many, and how long they took."""
    seconds = sorted(half["seconds"])
    short = f" (of {half['wanted']} wanted)" if len(seconds) < half["wanted"] else ""
    least, middle, most = seconds[0], seconds[len(seconds) // 2], seconds[-1]
    return (
        f"{len(seconds)} pods{short} in sequence, each left nothing: "
        f"`ctr run` took {least:.2f} s at least, {middle:.2f} s in the middle, {most:.2f} s at most."
    )


if __name__ == "__main__":
    sys.stdout.write(page(results.kept()))
