"""``python -m integration.soak --containers 200 --pods 50``: the tables, and exit code 1 for whatever is not flat."""

import argparse
import os
import secrets
import sys
from pathlib import Path

from integration.harness import image, leaks, pods, process
from integration.harness.containerd import Containerd
from integration.harness.ctr import Ctr
from integration.harness.host import Host
from integration.soak import page, results, soak


def main() -> int:
    parser = argparse.ArgumentParser(description="many containers in one pod, many pods in sequence")
    parser.add_argument("--containers", type=int, default=200)
    parser.add_argument("--pods", type=int, default=50)
    parser.add_argument("--keep", action="store_true", help="write docs/soak.md")
    arguments = parser.parse_args()
    process.become_subreaper()
    prefix = Path(os.environ.get("KATA_SHIMD_PREFIX", "/opt/kata-shimd"))
    with Host([prefix / "bin"]) as host, Containerd(host) as containerd:
        archive = host.root / "image.tar"
        image.write_image(archive)
        ctr = Ctr(containerd, f"t{secrets.token_hex(4)}", image=image.NAME, config=pods.guest_config(host.root))
        ctr("image", "import", archive).ok()
        scene = leaks.Scene(host, ctr.namespace, containerd)
        try:
            return _soak(ctr, scene, arguments)
        finally:
            leaks.forget_namespace(scene)


def _soak(ctr: Ctr, scene: leaks.Scene, arguments: argparse.Namespace) -> int:
    # The first pod makes directories and connections that every later one shares.
    ctr.run("soak-first", "true").ok()
    found = _containers(ctr, scene, arguments) if arguments.containers else []
    if arguments.pods:
        _pods(ctr, scene, arguments)
    return 1 if found else 0


def _containers(ctr: Ctr, scene: leaks.Scene, arguments: argparse.Namespace) -> list[str]:
    before = leaks.snapshot(scene)
    samples = list(soak.containers(ctr, scene.host.run_dir, arguments.containers))
    found = soak.complaints(samples)
    if leaked := leaks.await_no_leak(scene, before):
        found.append(leaks.report(leaked))
    sys.stdout.write(f"{page.table(results.rows(samples))}\n{page.verdict(found, soak.slope(samples))}\n")
    sys.stdout.flush()
    if arguments.keep:
        results.keep_containers(samples, found)
        page.PATH.write_text(page.page(results.kept()))
    return found


def _pods(ctr: Ctr, scene: leaks.Scene, arguments: argparse.Namespace) -> None:
    seconds: list[float] = []
    for _, each in soak.pods_in_sequence(ctr, scene, arguments.pods):
        seconds.append(each)
        if arguments.keep:
            results.keep_pods(seconds, arguments.pods)
            page.PATH.write_text(page.page(results.kept()))
    sys.stdout.write(page.pods({"seconds": seconds, "wanted": arguments.pods}) + "\n")


if __name__ == "__main__":
    sys.exit(main())
