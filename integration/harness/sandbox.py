"""One pod for many containers, as CRI makes them: a module's tests share one boot of a VM."""

import itertools
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from integration.harness.ctr import Ctr, Done
from integration.harness.spec import Spec

TYPE: Final = "io.kubernetes.cri.container-type"
SANDBOX: Final = "io.kubernetes.cri.sandbox-id"

_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A pod held open by its first container. ``rootfs`` is the tree of every container made by `spec`: it must not be written."""

    ctr: Ctr
    id: str
    rootfs: Path
    #: For specs and whatever a test shares with its container.
    directory: Path
    #: A configuration file of Kata's form, or None.
    config: Path | None = None

    def spec(self, *argv: str) -> Spec:
        """containerd's default spec, for a further container of this pod."""
        spec = Spec.default(self.ctr, self.rootfs, *argv)
        return spec.set("annotations", {TYPE: "container", SANDBOX: self.id})

    def script(self, text: str) -> Spec:
        return self.spec("sh", "-c", text)

    def run(self, spec: Spec, *options: str) -> Done:
        """Run it to its end under a fresh name."""
        container_id = self.fresh("c")
        return self.ctr(*self.words(spec, container_id, "--rm", *options))

    def words(self, spec: Spec, container_id: str, *options: str) -> list[str]:
        """The words of ``ctr run`` for this spec."""
        file = spec.write(self.directory / f"{container_id}.json")
        config = ["--runtime-config-path", str(self.config)] if self.config else []
        return ["run", "--runtime", self.ctr.runtime, *config, *options, "--config", str(file), container_id]

    @contextmanager
    def running(self, spec: Spec, *options: str) -> Iterator[str]:
        """A container that stays for the block; its id."""
        container_id = self.fresh("r")
        io = () if "--log-uri" in options else ("--null-io",)
        self.ctr(*self.words(spec, container_id, "--detach", *io, *options)).ok()
        try:
            yield container_id
        finally:
            self.ctr.remove(container_id)

    def fresh(self, kind: str) -> str:
        return f"{self.id}-{kind}{next(_numbers)}"

    def directory_of(self, name: str) -> Path:
        """An empty directory on the host."""
        path = self.directory / self.fresh(name)
        path.mkdir(mode=0o755)
        return path


@contextmanager
def sandbox(
    ctr: Ctr, name: str, rootfs: Path, directory: Path, *, config: Path | None = None, **changes: Any
) -> Iterator[Sandbox]:
    """A pod whose first container only sleeps. ``changes`` are paths of its spec: ``hostname="x"``, ``linux__sysctl={…}``."""
    pod = Sandbox(ctr, f"{name}-{next(_numbers)}", rootfs, directory, config or ctr.config)
    spec = pod.spec("sleep", "86400").set("annotations", {TYPE: "sandbox", SANDBOX: pod.id})
    for path, value in changes.items():
        spec.set(path.replace("__", "."), value)
    ctr(*pod.words(spec, pod.id, "--detach", "--null-io")).ok()
    try:
        yield pod
    finally:
        ctr.remove(pod.id)


def table(text: str) -> Mapping[str, str]:
    """Lines ``key: value`` or ``key=value`` as a table; others are left out."""
    pairs = (re.match(r"([\w.-]+)[:=](.*)", line) for line in text.splitlines())
    return {pair[1]: pair[2].strip() for pair in pairs if pair}


def capabilities(mask: str) -> frozenset[str]:
    """The names in a hexadecimal mask of /proc/PID/status, of those the tests use."""
    bits = int(mask, 16)
    return frozenset(name for name, bit in CAPABILITIES.items() if bits >> bit & 1)


#: linux/capability.h
CAPABILITIES: Final[Mapping[str, int]] = {
    "CAP_CHOWN": 0,
    "CAP_DAC_OVERRIDE": 1,
    "CAP_KILL": 5,
    "CAP_SETGID": 6,
    "CAP_SETUID": 7,
    "CAP_SETPCAP": 8,
    "CAP_NET_BIND_SERVICE": 10,
    "CAP_NET_RAW": 13,
    "CAP_SYS_ADMIN": 21,
    "CAP_MKNOD": 27,
}
