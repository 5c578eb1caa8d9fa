"""The container image of the tests: one static busybox, packed here, byte for byte the same on every machine that has the same one.

There is no registry: the image is an OCI layout in a tar, given to ``ctr image import``. The same tree can be laid out as a
directory for ``ctr run --rootfs``.
"""

import gzip
import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

BUSYBOX: Final = Path("/bin/busybox")
NAME: Final = "registry.invalid/kata-shimd/busybox:test"
IMAGE_PATH: Final = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

DIRECTORIES: Final = (
    "bin",
    "dev",
    "etc",
    "home",
    "home/app",
    "proc",
    "root",
    "sbin",
    "sys",
    "tmp",
    "usr",
    "usr/bin",
    "usr/sbin",
    "var",
)
FILES: Final = {
    "etc/passwd": b"root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:app:/home/app:/bin/sh\n",
    "etc/group": b"root:x:0:\napp:x:1000:\nextra:x:2000:app\n",
}
CONFIG: Final[dict[str, Any]] = {
    "architecture": "amd64",
    "os": "linux",
    "config": {
        "Env": [IMAGE_PATH, "FROM_IMAGE=yes"],
        "Cmd": ["/bin/sh"],
        "WorkingDir": "/",
    },
}
_MEDIA: Final = "application/vnd.oci.image."

Entry = tuple[tarfile.TarInfo, bytes]


def write_image(target: Path, *, extra: Iterable[tuple[str, bytes]] = ()) -> None:
    """Write the OCI layout as a tar. ``extra`` are (path, content) of further executable files.

    :raises FileNotFoundError: busybox-static is not installed
    """
    write_archive(target, {NAME: pack(tree(extra), CONFIG)})


@dataclass(frozen=True, slots=True)
class Packed:
    """An image as a registry or an archive holds it: blobs by digest (``sha256:…``), and the manifest's descriptor."""

    blobs: Mapping[str, bytes]
    manifest: Mapping[str, Any]


def pack(files: Iterable[Entry], config: Mapping[str, Any]) -> Packed:
    """One layer of ``files`` under a config of OCI's form, which is given the layer's hash."""
    layer = _tar(files)
    blobs: dict[str, bytes] = {}
    packed = gzip.compress(layer, 1, mtime=0)
    rootfs = {"type": "layers", "diff_ids": [_digest(layer)]}
    described = _blob(blobs, "config.v1+json", _json({**config, "rootfs": rootfs}))
    layers = [_blob(blobs, "layer.v1.tar+gzip", packed)]
    manifest = _blob(
        blobs,
        "manifest.v1+json",
        _json({"schemaVersion": 2, "mediaType": f"{_MEDIA}manifest.v1+json", "config": described, "layers": layers}),
    )
    return Packed(blobs, manifest)


def pause() -> Packed:
    """The image of a pod's sandbox container: it ends when it is told to, and reaps what is left to it."""
    script = b"#!/bin/sh\ntrap 'exit 0' TERM INT\nwhile :; do sleep 86400 & wait; done\n"
    return pack(tree([("pause", script)]), {**CONFIG, "config": {"Env": [IMAGE_PATH], "Entrypoint": ["/pause"]}})


def write_archive(target: Path, images: Mapping[str, Packed]) -> None:
    """Write images (by full name) as one OCI layout in a tar, for ``ctr image import``."""
    blobs: dict[str, bytes] = {}
    manifests = []
    for name, image in images.items():
        blobs |= {"blobs/" + digest.replace(":", "/"): data for digest, data in image.blobs.items()}
        platform = {"architecture": "amd64", "os": "linux"}
        manifests.append({**image.manifest, "annotations": {"io.containerd.image.name": name}, "platform": platform})
    index = _json({"schemaVersion": 2, "manifests": manifests})
    files = {"oci-layout": _json({"imageLayoutVersion": "1.0.0"}), "index.json": index, **blobs}
    target.write_bytes(_tar(entry(name, data) for name, data in sorted(files.items())))


def write_rootfs(target: Path, *, extra: Iterable[tuple[str, bytes]] = ()) -> None:
    """Lay the same tree out below an empty directory."""
    with tarfile.open(fileobj=io.BytesIO(_tar(tree(extra)))) as tar:
        # The tree is our own, devices and owners included; Debian's 3.11 knows no filters, later ones insist on one.
        tar.extraction_filter = lambda member, _: member
        tar.extractall(target)


def tree(
    extra: Iterable[tuple[str, bytes]] = (), *, files: Mapping[str, bytes] = FILES, busybox: Path = BUSYBOX
) -> Iterator[Entry]:
    """busybox with all its applets, users and the usual directories; ``extra`` are (path, content) of executables."""
    for name in DIRECTORIES:
        mode = {"tmp": 0o1777, "root": 0o700}.get(name, 0o755)
        owner = 1000 if name == "home/app" else 0
        yield entry(name, b"", kind=tarfile.DIRTYPE, mode=mode, owner=owner)
    yield from (entry(name, data) for name, data in files.items())
    yield entry("bin/busybox", busybox.read_bytes(), mode=0o755)
    for applet in _applets(busybox):  # hard links, as upstream's image has them: each is a file of its own to a mount
        yield entry(f"bin/{applet}", b"", kind=tarfile.LNKTYPE, link="bin/busybox", mode=0o755)
    yield from (entry(name, data, mode=0o755) for name, data in extra)


def _applets(busybox: Path) -> list[str]:
    listed = subprocess.run([busybox, "--list"], check=True, capture_output=True, text=True).stdout.split()
    return sorted(set(listed) - {"busybox"})


def libraries(program: Path) -> list[tuple[str, bytes]]:
    """The shared libraries that a program of this host's distribution is linked with, loader included, as (path, content)."""
    said = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    paths = [word for line in said.splitlines() for word in line.split() if word.startswith("/")]
    return [(path.removeprefix("/"), Path(path).read_bytes()) for path in paths]


def entry(
    name: str, data: bytes, *, kind: bytes = tarfile.REGTYPE, mode: int = 0o644, owner: int = 0, link: str = ""
) -> Entry:
    """One member of a layer."""
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.size, info.linkname = kind, mode, len(data), link
    info.uid = info.gid = owner
    return info, data


def _tar(entries: Iterable[Entry]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for info, data in entries:
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _blob(blobs: dict[str, bytes], kind: str, data: bytes) -> dict[str, Any]:
    digest = _digest(data)
    blobs[digest] = data
    return {"mediaType": _MEDIA + kind, "digest": digest, "size": len(data)}


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
