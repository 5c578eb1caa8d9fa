"""Distribution packages: which ones a guest needs, fetched through apt and checked against the hash its signed index gives.

Package lists are the host's own (``apt-get update`` is the administrator's to run). Nothing is installed, and nothing of a
package is executed.
"""

import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kata_shimd.errors import HostFailed, NotFound
from kata_shimd.image.tool import run

KERNEL_PREFIX = "linux-image-"
#: ``name (>= 1) [arch] <profile>``, and ``name:any``: of a dependency only the name matters, apt has one candidate version.
DEPENDENCY = re.compile(r"\s*([a-z0-9][a-z0-9+.-]*)")
UPDATE_HINT = "run apt-get update, and see that the package is in this release of the distribution"


@dataclass(frozen=True, slots=True)
class Package:
    """apt's candidate. ``depends`` is a conjunction of alternatives, as in the control file; ``file`` is the archive's name."""

    name: str
    version: str
    sha256: str
    file: str
    depends: tuple[tuple[str, ...], ...] = ()


#: Names → apt's candidates; names it does not know are missing from the answer.
Show = Callable[[Sequence[str]], list[Package]]


def apt_show(names: Sequence[str]) -> list[Package]:
    text = run("ask apt", " ".join(names), ["apt-cache", "show", "--no-all-versions", *names], codes=(0, 100))
    return [parse_stanza(stanza) for stanza in text.decode(errors="replace").split("\n\n") if stanza.strip()]


def parse_stanza(stanza: str) -> Package:
    """One paragraph of apt's answer. Raises HostFailed when a field that every package has is missing."""
    fields = dict(re.findall(r"^([A-Za-z0-9-]+): (.*)$", stanza, re.MULTILINE))
    try:
        depends = [field for key in ("Pre-Depends", "Depends") if (field := fields.get(key))]
        return Package(
            name=fields["Package"],
            version=fields["Version"],
            sha256=fields["SHA256"],
            file=fields["Filename"].rpartition("/")[2],
            depends=tuple(_alternatives(group) for group in ", ".join(depends).split(",") if group.strip()),
        )
    except KeyError as error:
        name = fields.get("Package", "?")
        raise HostFailed(
            "read apt's answer", name, f"no field {error}", hint="is it in a package source at all?"
        ) from error


def resolve(roots: Iterable[str], show: Show, likely: Iterable[str] = ()) -> tuple[Package, ...]:
    """``roots`` and everything they depend on, by name.

    An alternative that is needed anyway wins, otherwise the first that exists. ``likely`` names (of an earlier answer) are
    asked for together with the roots: asking apt is the slow part. Raises NotFound.
    """
    known: dict[str, Package] = {}
    unknown: set[str] = set()

    def learn(names: Iterable[str]) -> None:
        new = sorted(set(names) - known.keys() - unknown)
        if new:
            known.update((package.name, package) for package in show(new))
            unknown.update(set(new) - known.keys())

    chosen: dict[str, Package] = {}
    wanted: set[tuple[str, ...]] = {(root,) for root in roots}
    learn([*(name for group in wanted for name in group), *likely])
    while wanted:
        learn(name for group in wanted for name in group)
        packages = [_choose(group, known, chosen) for group in sorted(wanted)]
        chosen.update((package.name, package) for package in packages)
        depends = {group for package in packages for group in package.depends}
        wanted = {group for group in depends if not any(name in chosen for name in group)}
    return tuple(chosen[name] for name in sorted(chosen))


def kernel_package(name: str, show: Show) -> Package:
    """The package with the kernel: ``name`` itself, or the one that ``name`` as a meta-package points to.

    What a kernel package depends on (initramfs-tools, ...) is for hosts, and not followed.
    """
    package = _one(name, show)
    targets = [
        alternative for group in package.depends for alternative in group if alternative.startswith(KERNEL_PREFIX)
    ]
    return _one(targets[0], show) if targets else package


def fetch(packages: Sequence[Package], cache: Path) -> dict[str, Path]:
    """Each package's archive by its name, from the cache or the archive it came from; every one is checked against its hash.

    Raises HostFailed when apt cannot get one or it is not what the index says.
    """
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    missing = [package for package in packages if not _is_genuine(cache / package.file, package)]
    if missing:
        _download(missing, cache)
    return {package.name: cache / package.file for package in packages}


def unpack(archive: Path, tree: Path) -> None:
    """The archive's files below ``tree``; maintainer scripts are not run."""
    run("unpack package", archive.name, ["dpkg-deb", "--extract", str(archive), str(tree)])


def _download(packages: Sequence[Package], cache: Path) -> None:
    """Into a private directory first: a name in the cache means a whole and genuine file."""
    # apt drops to a user who may not write here; the hash is checked below all the same.
    unsandboxed = ["-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else []
    with tempfile.TemporaryDirectory(dir=cache, prefix="fetch-") as fresh:
        wanted = [f"{package.name}={package.version}" for package in packages]
        argv = ["apt-get", "download", "--quiet", *unsandboxed, *wanted]
        run("download packages", " ".join(wanted), argv, cwd=Path(fresh), hint=UPDATE_HINT)
        # apt writes an epoch's colon as %3a; the archive's own name has no epoch. Hashes tell which file is which.
        found = {_sha256(path): path for path in Path(fresh).iterdir()}
        for package in packages:
            if (path := found.get(package.sha256)) is None:
                raise HostFailed("check package", package.file, "not the bytes its index promises", hint=UPDATE_HINT)
            path.replace(cache / package.file)


def _one(name: str, show: Show) -> Package:
    if not (found := [package for package in show([name]) if package.name == name]):
        raise NotFound("find package", name, "apt does not know it", hint=UPDATE_HINT)
    return found[0]


def _choose(group: tuple[str, ...], known: dict[str, Package], chosen: dict[str, Package]) -> Package:
    for name in (*(name for name in group if name in chosen), *group):
        if name in known:
            return known[name]
    raise NotFound("find package", " | ".join(group), "apt does not know it", hint=UPDATE_HINT)


def _alternatives(group: str) -> tuple[str, ...]:
    return tuple(match[1] for name in group.split("|") if (match := DEPENDENCY.match(name)))


def _is_genuine(path: Path, package: Package) -> bool:
    return path.is_file() and _sha256(path) == package.sha256


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
