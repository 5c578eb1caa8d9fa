"""``python -m integration.soak --containers 200 --pods 50``: the tables, and exit code 1 for whatever is not flat."""

import argparse
import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

from integration.harness import image, leaks, process
from integration.harness.containerd import Containerd
from integration.harness.ctr import Ctr
from integration.harness.host import Host
from integration.soak import soak


def main() -> int:
    parser = argparse.ArgumentParser(description="many containers in one pod, many pods in sequence")
    parser.add_argument("--containers", type=int, default=200)
    parser.add_argument("--pods", type=int, default=50)
    arguments = parser.parse_args()
    process.become_subreaper()
    prefix = Path(os.environ.get("KATA_SHIMD_PREFIX", "/opt/kata-shimd"))
    with Host([prefix / "bin"]) as host, Containerd(host) as containerd:
        archive = host.root / "image.tar"
        image.write_image(archive)
        ctr = Ctr(containerd, f"t{secrets.token_hex(4)}", image=image.NAME)
        ctr("image", "import", archive).ok()
        scene = leaks.Scene(host, ctr.namespace, containerd)
        try:
            return _soak(ctr, scene, arguments.containers, arguments.pods)
        finally:
            leaks.forget_namespace(scene)


def _soak(ctr: Ctr, scene: leaks.Scene, containers: int, pods: int) -> int:
    # The first pod makes directories and connections that every later one shares.
    ctr.run("soak-first", "true").ok()
    before = leaks.snapshot(scene)
    samples = list(soak.containers(ctr, scene.host.run_dir, containers)) if containers else []
    found = soak.complaints(samples) if samples else []
    if leaked := leaks.await_no_leak(scene, before):
        found.append(leaks.report(leaked))
    _print_containers(samples)
    seconds = [each for _, each in soak.pods_in_sequence(ctr, scene, pods)]
    _print_pods(seconds)
    for complaint in found:
        sys.stdout.write(f"{complaint}\n")
    return 1 if found else 0


def _print_containers(samples: Sequence[soak.Sample]) -> None:
    sys.stdout.write("| containers | descriptors | threads | PSS, KiB | ctr run, s |\n|---|---|---|---|---|\n")
    step = max(1, len(samples) // 8)
    shown = [sample for sample in samples if sample.number in (1, soak.WARM, len(samples)) or sample.number % step == 0]
    for one in shown:
        sys.stdout.write(f"| {one.number} | {one.fds} | {one.threads} | {one.pss_kib} | {one.seconds:.2f} |\n")


def _print_pods(seconds: Sequence[float]) -> None:
    if seconds:
        middle = sorted(seconds)[len(seconds) // 2]
        sys.stdout.write(
            f"\n{len(seconds)} pods in sequence, each left nothing: ctr run took {min(seconds):.2f} s at least, "
            f"{middle:.2f} s in the middle, {max(seconds):.2f} s at most\n"
        )


if __name__ == "__main__":
    sys.exit(main())
