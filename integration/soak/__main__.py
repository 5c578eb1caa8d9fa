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
from integration.soak import page, soak


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
    before = leaks.snapshot(scene)
    samples = list(soak.containers(ctr, scene.host.run_dir, arguments.containers)) if arguments.containers else []
    found = soak.complaints(samples) if samples else []
    if leaked := leaks.await_no_leak(scene, before):
        found.append(leaks.report(leaked))
    sys.stdout.write(f"{page.containers(samples)}\n")
    sys.stdout.flush()
    if arguments.keep:  # already, for the pods may fail
        page.PATH.write_text(page.page(samples, (), found))
    seconds = [each for _, each in soak.pods_in_sequence(ctr, scene, arguments.pods)]
    sys.stdout.write("\n".join((page.pods(seconds), *found, "")))
    if arguments.keep:
        page.PATH.write_text(page.page(samples, seconds, found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
