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
containerd and real virtual machines. After each container the daemon is looked at from outside; it is flat when, once it is warm,
it has no descriptor and no thread more than before, and has not grown by more than {most:g} KiB a container. After each pod the
host is compared with what it was before: processes, mounts, links, cgroups, files, descriptors of containerd.

The short form is `integration/soak/test_soak.py`. Tasks of the daemon's event loop cannot be seen from outside: that a container
that was removed leaves none is `kata_shimd/task/test_service.py`'s.

Found by a soak, now `integration/test_virtiofsd_slow.py`: the 24th pod never ended, because the guest's kernel had killed its
process half-way out (see [guest-agent.md](guest-agent.md), storage).
"""


def page(kept: results.Results) -> str:
    """The whole page."""
    parts = [HEAD.format(most=soak.MOST_KIB)]
    if half := kept.get("containers"):
        parts += ["## Containers in one pod", f"{half['when']}.", table(half["rows"]), verdict(half["found"])]
    if half := kept.get("pods"):
        parts += ["## Pods in sequence", f"{half['when']}.", pods(half)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def table(rows: Sequence[Sequence[float]]) -> str:
    head = ["| Containers so far | Descriptors | Threads | Memory (PSS), KiB | `ctr run`, s |", "|---|---|---|---|---|"]
    return "\n".join([*head, *(f"| {' | '.join(map(str, row))} |" for row in rows)])


def verdict(found: Sequence[str]) -> str:
    return "\n".join(f"- {complaint}" for complaint in found) or "Flat, and nothing left behind."


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
