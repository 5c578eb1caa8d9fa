"""A pod that is a clone of a template, beside one that is booted: from the spawn of `start` to the first byte its container prints.

    python -m integration.bench.template [--runs 11] [--quick] [--guest DIR] [--launcher FILE]

Each round makes one of each, in turn, with the same guest and the same configuration but for the one key. The template is made
before the first round, by `kata-shimd template build`, and taken away after the last. Where there is KVM the same command measures
that.
"""

import argparse
import secrets
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from integration.bench.coldstart import circumstances, row
from integration.bench.pod import BenchPod, Timeline

AIM: Final = "≤ 0.3"
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
            print(subprocess.run(build, check=True, capture_output=True, text=True).stdout)
            yield cold, cloned
        finally:
            shutil.rmtree(path, ignore_errors=True)


def measure(launcher: Path, config: Path) -> Timeline:
    with (
        tempfile.TemporaryDirectory(prefix="kb-", dir="/tmp") as root,
        BenchPod(launcher, Path(root), config) as pod,
    ):
        return pod.measure()


def table(cold: Sequence[Timeline], cloned: Sequence[Timeline]) -> str:
    """Median, inter-quartile range and n of each row; ratios are medians of the rounds' own ratios."""
    rows = ["| what | median s | IQR s | n |", "| --- | --- | --- | --- |"]
    for name, pods in (("booted", cold), ("cloned", cloned)):
        rows += [row(f"{name}: `start` answered", [pod.started for pod in pods])]
        rows += [row(f"{name}: {phase}", [pod.phases[phase] / 1000 for pod in pods]) for phase in pods[0].phases]
        rows += [row(f"{name}: ready", [pod.ready for pod in pods])]
        rows += [row(f"{name}: first byte of the container", [pod.first_byte for pod in pods])]
    return "\n".join([*rows, "", *ratios(cold, cloned)])


def ratios(cold: Sequence[Timeline], cloned: Sequence[Timeline]) -> list[str]:
    pairs = list(zip(cloned, cold, strict=True))
    measured = {
        "VM ready, from `start` answered": [
            (one.ready - one.started) / (other.ready - other.started) for one, other in pairs
        ],
        "ready": [one.ready / other.ready for one, other in pairs],
        "first byte": [one.first_byte / other.first_byte for one, other in pairs],
    }
    rows = ["| cloned ÷ booted | median | aim |", "| --- | --- | --- |"]
    return rows + [
        f"| {name} | {statistics.median(values):.2f} | {AIM if name == 'first byte' else ''} |"
        for name, values in measured.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=11)
    parser.add_argument("--quick", action="store_true", help="one round, to see that it works")
    parser.add_argument("--guest", type=Path, default=Path("/var/lib/kata-shimd/guest/current"))
    parser.add_argument("--launcher", type=Path, default=Path("/opt/kata-shimd/bin/containerd-shim-kata-v2"))
    arguments = parser.parse_args()
    cold: list[Timeline] = []
    cloned: list[Timeline] = []
    with configurations(arguments.guest, arguments.launcher) as (without, with_template):
        for _ in range(1 if arguments.quick else arguments.runs):
            cold.append(measure(arguments.launcher, without))
            cloned.append(measure(arguments.launcher, with_template))
    print(circumstances(arguments.guest, "template"), table(cold, cloned), sep="\n\n")


if __name__ == "__main__":
    main()
