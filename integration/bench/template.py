"""A pod that is a clone of a template, beside one that is booted: from the spawn of `start` to the first byte its
container prints.

Each round makes one of each, in turn, with the same guest and the same configuration but for the one key. The
template is made before the first round, by `kata-shimd template build`, and taken away after the last.
"""

import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from integration.bench.coldstart import timelines
from integration.bench.pod import BenchPod, Timeline
from integration.bench.results import Claim, Group, Measured, Options

CONFIG: Final = """[shimd]
guest_dir = "{guest}"
[factory]
enable_template = {enabled}
template_path = "{path}"
"""


@contextmanager
def configurations(guest: Path, launcher: Path) -> Iterator[tuple[Path, Path]]:
    """Without templates, and with one that was made."""
    path = Path("/dev/shm", f"kb-{secrets.token_hex(4)}")
    with tempfile.TemporaryDirectory(prefix="kb-", dir="/tmp") as root:
        cold, cloned = Path(root, "cold.toml"), Path(root, "cloned.toml")
        cold.write_text(CONFIG.format(guest=guest, path=path, enabled="false"))
        cloned.write_text(CONFIG.format(guest=guest, path=path, enabled="true"))
        tool = launcher.with_name("kata-shimd")
        build: list[str | Path] = [tool, "template", "build", "--config", cloned, "--run-dir", Path(root, "run")]
        try:
            subprocess.run(build, check=True, capture_output=True)
            yield cold, cloned
        finally:
            shutil.rmtree(path, ignore_errors=True)


def measure(launcher: Path, config: Path) -> Timeline:
    with (
        tempfile.TemporaryDirectory(prefix="kb-", dir="/tmp") as root,
        BenchPod(launcher, Path(root), config) as pod,
    ):
        return pod.measure()


def run(options: Options) -> Measured:
    cold: list[Timeline] = []
    cloned: list[Timeline] = []
    with configurations(options.guest, options.launcher) as (without, with_template):
        for _ in range(options.rounds):
            cold.append(measure(options.launcher, without))
            cloned.append(measure(options.launcher, with_template))
    return {**timelines(cold, "booted: "), **timelines(cloned, "cloned: ")}


GROUP: Final = Group(
    "template",
    "A pod that is cloned, beside one that is booted",
    """From the spawn of `start` to the first byte its container prints, with the same guest and the same configuration but
for `factory.enable_template`; the template is made before the first round. With KVM the same command measures that,
which **has not been done**. `memory` is what was left to wait for of the copy when QEMU had started; `identity` is
the session in which a clone is given time and randomness of its own, `dial` the handshake of the pod's own session
after it.""",
    run,
    (
        Claim("templated pod, spawn to first byte ÷ cold pod", "cloned: first byte", "booted: first byte", 0.3),
        Claim("templated pod, spawn to ready ÷ cold pod", "cloned: ready", "booted: ready"),
    ),
)
