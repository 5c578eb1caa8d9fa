"""Makes a shared directory with a virtiofsd on it, mounts below it, and prints what virtiofsd sees. Run by test_share.

Undoes everything itself: its mount namespace ends with it, and the ledger's mounts with the namespace.
"""

import asyncio
import errno
import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from integration.harness.waiting import eventually
from integration.vm.site import SPEC, Site
from kata_shimd.host import mounts
from kata_shimd.vm import share, virtiofsd


async def probe(site):
    directory = share.make(site.ledger, site.pod_dir)
    server = await virtiofsd.Server.probe(SPEC.share, timeout=10)
    with ExitStack() as ours:
        serving = server.start(ours, directory, site.ledger, site.gate, debug=False)
        root = eventually("virtiofsd is in its sandbox", lambda: sandbox(serving.process.pid), within=20)
        report = look(site, directory, root)
        serving.process.kill()
        await serving.process.wait()
    return report


def sandbox(pid):
    """The root of virtiofsd's worker, once it has changed into it: the export and nothing else."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return None
    for child in children:
        root = Path(f"/proc/{child}/root")
        if not (root / "usr").exists() and not (root / "proc").exists():
            return root
    return None


def look(site, directory, root):
    source = site.run / "volume"
    source.mkdir()
    (source / "file").write_text("late")
    report = {"write into frame": attempt(root / "planted")}
    for name, readonly in (("rw", False), ("ro", True)):
        target = directory.shared / "c" / name
        target.mkdir(parents=True)
        mounts.bind(site.ledger, source, target, readonly=readonly, scope="container/c")
    report["late"] = (root / "c/rw/file").read_text()
    report["write into writable mount"] = attempt(root / "c/rw/new")
    report["write into read-only mount"] = attempt(root / "c/ro/new")
    report["mounts"] = below(site.run, exclude="/c/")
    for name in ("rw", "ro"):
        subprocess.run(["umount", directory.shared / "c" / name], check=True)
    report["after unmount"] = [path.name for path in (root / "c/rw").iterdir()]
    (source / "file").unlink()
    (source / "new").unlink()
    source.rmdir()
    return report


def attempt(path):
    try:
        path.touch()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "done"


def below(run, *, exclude):
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [line.split()[4] for line in lines]
    return sorted(Path(point).name for point in points if point.startswith(str(run)) and exclude not in point)


if __name__ == "__main__":
    print(json.dumps(asyncio.run(probe(Site(Path(sys.argv[1]))))))
    os._exit(0)
