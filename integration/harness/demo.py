"""Runs one container in a virtual machine through a private containerd, and shows that it did."""

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from integration.harness import image, leaks, pods, process
from integration.harness.containerd import Containerd
from integration.harness.ctr import Ctr, Done
from integration.harness.host import Host
from integration.harness.steps import StepFailed

EXIT_CODE: Final = 7
SCRIPT: Final = f"uname -r; exit {EXIT_CODE}"


@dataclass(slots=True)
class Shown:
    """What there is to tell afterwards: the guest's kernel, and where the time went (label → seconds)."""

    guest_kernel: str = ""
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, label: str) -> Iterator[None]:
        begin = time.monotonic()
        yield
        self.seconds[label] = time.monotonic() - begin


def show(prefix: Path) -> Shown:
    """Run the container; leave nothing.

    :raises StepFailed: it did not run as asked, or something stayed behind
    """
    process.become_subreaper()
    shown = Shown()
    with Host([prefix / "bin"]) as host, _containerd(host, shown) as containerd:
        ctr = _client(containerd, shown)
        scene = leaks.Scene(host, ctr.namespace, containerd)
        before = leaks.snapshot(scene)
        with shown.timed("ctr run, until the client had its exit code"):
            done = ctr.run("demo", "sh", "-c", SCRIPT)
        _judge(done, host, containerd)
        shown.guest_kernel = done.out
        shown.seconds |= _phases(host)
        with shown.timed("until nothing was left"):
            leaked = leaks.await_no_leak(scene, before)
        leaks.forget_namespace(scene)
    if leaked:
        raise StepFailed("clean up", leaks.report(leaked), "this is a bug; the lines above say what stayed")
    return shown


def text(shown: Shown) -> str:
    """The last lines of the demo."""
    table = "\n".join(f"  {seconds:7.2f} s  {label}" for label, seconds in shown.seconds.items())
    host_kernel = os.uname().release
    return (
        f"where the time went:\n{table}\n"
        f"host kernel {host_kernel}, container saw {shown.guest_kernel}, exit code {EXIT_CODE} as asked"
    )


@contextmanager
def _containerd(host: Host, shown: Shown) -> Iterator[Containerd]:
    containerd = Containerd(host, level="info")
    with shown.timed("start of a private containerd"):
        containerd.start()
    try:
        yield containerd
    finally:
        containerd.stop()


def _client(containerd: Containerd, shown: Shown) -> Ctr:
    archive = containerd.home / "image.tar"
    ctr = Ctr(containerd, f"demo{secrets.token_hex(4)}", image=image.NAME)
    with shown.timed("packing and importing an image of busybox"):
        image.write_image(archive)
        ctr("image", "import", archive).ok()
    return ctr


def _judge(done: Done, host: Host, containerd: Containerd) -> None:
    if done.code == EXIT_CODE and done.out and done.out != os.uname().release:
        return
    evidence = "\n".join(f"--- {title}\n{content}" for title, content in pods.attachments(host.run_dir).items())
    log = containerd.log_from(0)[-4000:]
    raise StepFailed(
        "run a container",
        f"{done}\n{evidence}\n--- containerd log\n{log}",
        "`kata-shimd check` says what this host lacks",
    )


def _phases(host: Host) -> dict[str, float]:
    """The boot's phases, from the pod's journal."""
    found: dict[str, float] = {}
    for journal in sorted((host.run_dir / "journal").glob("*.jsonl")):
        for event in pods.Pod(host.run_dir, journal.stem).journal():
            if event.get("event") == "boot-phase":
                found[f"  of this, boot: {event['phase']}"] = float(event.get("ms", 0)) / 1000
    return found
