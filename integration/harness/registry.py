"""A registry of images on loopback: Debian's ``docker-registry``, over images that were made here.

Its storage is written directly, so nothing needs to be pushed, and it serves read-only. The program comes out of its package
without an installation, which would start a service on every machine that the tests run on.
"""

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from integration.harness import package, process
from integration.harness.cri import REGISTRY
from integration.harness.host import Host
from integration.harness.image import Packed
from integration.harness.scale import SCALE
from integration.harness.waiting import eventually

PACKAGE: Final = "docker-registry"

_CONFIG: Final = """\
version: 0.1
log: {{level: info, accesslog: {{disabled: true}}}}
storage:
  filesystem: {{rootdirectory: {root}}}
  maintenance: {{readonly: {{enabled: true}}}}
http: {{addr: {address}}}
"""


def program(cache: Path) -> Path:
    """The registry's program.

    :raises StepFailed: apt does not give it
    """
    return package.unpacked(PACKAGE, cache, "usr/bin/docker-registry")


def store(root: Path, images: Mapping[str, Packed]) -> None:
    """Lay images (by ``repository:tag``) out as the registry's file system storage has them."""
    top = root / "docker/registry/v2"
    for name, image in images.items():
        repository, _, tag = name.rpartition(":")
        for digest, data in image.blobs.items():
            _write(top / "blobs" / _spread(digest) / "data", data)
            _write(top / "repositories" / repository / "_layers" / _folder(digest) / "link", digest.encode())
        digest = str(image.manifest["digest"])
        manifests = top / "repositories" / repository / "_manifests"
        for link in (
            manifests / "revisions" / _folder(digest) / "link",
            manifests / "tags" / tag / "current/link",
            manifests / "tags" / tag / "index" / _folder(digest) / "link",
        ):
            _write(link, digest.encode())


def _folder(digest: str) -> str:
    return digest.replace(":", "/")


def _spread(digest: str) -> str:
    kind, _, number = digest.partition(":")
    return f"{kind}/{number[:2]}/{number}"


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


class Registry:
    """The registry, serving inside a host until it is closed."""

    def __init__(self, host: Host, cache: Path, images: Mapping[str, Packed]) -> None:
        home = host.root / "registry"
        store(home / "storage", images)
        config = home / "config.yml"
        config.write_text(_CONFIG.format(root=home / "storage", address=REGISTRY))
        self._log = home / "log"
        with self._log.open("ab") as log:
            self._child = host.spawn([program(cache), "serve", config], stdout=log, stderr=log)
        port = int(REGISTRY.rpartition(":")[2])
        self._listening = Path("/proc", str(host.pid), "net/tcp")
        eventually("the registry", lambda: self._listens(port), within=20 * SCALE)

    def _listens(self, port: int) -> bool:
        if self._child.poll() is not None:
            raise RuntimeError(f"the registry ended: {self._log.read_text()[-2000:]}")
        return f":{port:04X} 00000000:0000 0A" in self._listening.read_text()

    def close(self) -> None:
        process.finish(self._child)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
