"""Builds a guest: resolve packages, and unless that guest exists, fetch, compose, record, publish.

The digest is of the inputs (manifest, packages, programs, tools, this builder's format), so that whether a guest exists is known
without building it; equal inputs give equal outputs, whose hashes ``manifest.json`` records.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from time import monotonic
from typing import Any

from kata_shimd.errors import InvalidArgument, NotFound, Unimplemented
from kata_shimd.image import debian, kernel, rootfs
from kata_shimd.image.cpio import Entry, archive
from kata_shimd.image.debian import Package
from kata_shimd.image.elf import is_elf, linkage
from kata_shimd.image.manifest import Manifest, parse
from kata_shimd.image.modules import Module, ModuleTree, boot_lines, load_order, unsigned
from kata_shimd.image.store import MANIFEST, Store, os_errors
from kata_shimd.image.tool import run, version_line

#: Raised when this program makes other bytes of the same inputs.
FORMAT = 1
CACHE = Path("/var/cache/kata-shimd")
PROGRAMS = Path(__file__).parent / "bin"
DIGEST_LENGTH = 20
#: Modules and their list, where guest-init looks for them.
MODULE_DIR, MODULE_LIST = "modules", "modules.list"
KERNEL, INITRD, TRIVIAL, ROOTFS = "vmlinuz", "initrd.img", "trivial.img", "rootfs.img"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Programs:
    """Our own static binaries."""

    agent: Path = PROGRAMS / "kata-agent"
    init: Path = PROGRAMS / "guest-init"
    trivial: Path = PROGRAMS / "trivial-init"


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything a guest is made of. ``packages`` are the userland's, ``kernel`` is not among them."""

    manifest: Manifest
    text: str
    kernel: Package
    packages: tuple[Package, ...]
    programs: Mapping[str, bytes]
    tools: Mapping[str, str]

    def inputs(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "manifest": _sha256(self.text.encode()),
            "packages": [_package_record(package) for package in (self.kernel, *self.packages)],
            "programs": {name: _sha256(data) for name, data in self.programs.items()},
            "tools": dict(self.tools),
        }

    @property
    def digest(self) -> str:
        return _sha256(json.dumps(self.inputs(), sort_keys=True).encode())[:DIGEST_LENGTH]


def build_guest(
    manifest_text: str,
    programs: Programs,
    *,
    store: Store,
    cache: Path = CACHE,
    force: bool = False,
    say: Say = lambda line: None,
) -> str:
    """Makes the guest exist and current; returns its digest.

    With ``force`` it is built although it exists. Raises ShimError: NotFound for a package, program or file that is not there,
    HostFailed for a tool that fails, PermissionDenied, ResourceExhausted.
    """
    with _timed(say, "asking apt for packages"):
        plan = make_plan(manifest_text, programs, likely=_known_packages(store))
    with store.locked():
        if force or not store.has(plan.digest):
            _build(plan, store, cache, say)
        else:
            say(f"guest {plan.digest} exists")
        store.switch(plan.digest)
    return plan.digest


def make_plan(text: str, programs: Programs, show: debian.Show = debian.apt_show, likely: Sequence[str] = ()) -> Plan:
    manifest = parse(text)
    host = run("ask dpkg", "architecture", ["dpkg", "--print-architecture"]).decode().strip()
    if host != manifest.architecture:
        raise Unimplemented("build guest", host, f"the manifest and our programs are for {manifest.architecture}")
    asked = _remembering(show)
    packages = debian.resolve(manifest.rootfs.packages, asked, [manifest.kernel.package, *likely])
    return Plan(
        manifest=manifest,
        text=text,
        kernel=debian.kernel_package(manifest.kernel.package, asked),
        packages=packages,
        programs={name: _program(path) for name, path in asdict(programs).items()},
        tools={"mksquashfs": version_line("mksquashfs", "-version")},
    )


def _build(plan: Plan, store: Store, cache: Path, say: Say) -> None:
    with os_errors("cache packages", str(cache)), _timed(say, f"fetching {len(plan.packages) + 1} packages"):
        archives = debian.fetch([plan.kernel, *plan.packages], cache)
    with store.workspace() as work, os_errors("build guest", str(store.directory)):
        with _timed(say, "unpacking packages"):
            debian.unpack(archives[plan.kernel.name], work / "kernel")
            for package in plan.packages:
                debian.unpack(archives[package.name], work / "packages")
        finished = work / plan.digest
        finished.mkdir(mode=0o755)
        record = _compose(plan, work, finished, say)
        _write(finished / MANIFEST, json.dumps(record, indent=2, sort_keys=True).encode() + b"\n")
        store.publish(finished, plan.digest)


def _compose(plan: Plan, work: Path, finished: Path, say: Say) -> dict[str, Any]:
    """Writes the guest's files and returns its record."""
    found = kernel.find_kernel(work / "kernel")
    tree = ModuleTree(found.modules)
    part = plan.manifest.initrd
    initrd = boot_lines(part.modules, part.device_modules, tree.read)
    trivial = boot_lines(part.trivial_modules, {}, tree.read)
    with _timed(say, f"writing kernel {found.release}"):
        packaged = found.image.read_bytes()
        unpacked = kernel.unpack(packaged, found.image.name) if plan.manifest.kernel.unpack else packaged
        _write(finished / KERNEL, unpacked)
    _write(finished / INITRD, make_initrd(plan.programs["init"], initrd, tree))
    _write(finished / TRIVIAL, make_initrd(plan.programs["trivial"], trivial, tree))
    with _timed(say, "making the root image"):
        _compose_rootfs(plan, work, found.release, tree)
        rootfs.write_squashfs(work / "root", finished / ROOTFS)
        (finished / ROOTFS).chmod(0o644)
    return {
        "digest": plan.digest,
        "inputs": plan.inputs(),
        "kernel_release": found.release,
        "modules": {module.name: list(patterns) for module, patterns in initrd.items()},
        "outputs": {path.name: _output_record(path) for path in sorted(finished.iterdir())},
    }


def _compose_rootfs(plan: Plan, work: Path, release: str, tree: ModuleTree) -> None:
    part = plan.manifest.rootfs
    staging = rootfs.Staging(work / "root")
    (work / "root").mkdir()
    staging.skeleton(part)
    staging.copy(rootfs.with_libraries(map(PurePosixPath, part.files), rootfs.PackageTree(work / "packages")))
    staging.write(rootfs.AGENT, plan.programs["agent"], 0o755)
    initrd = plan.manifest.initrd
    at_boot = [
        *initrd.modules,
        *initrd.device_modules,
        *(name for names in initrd.device_modules.values() for name in names),
    ]
    wanted = [*at_boot, *tree.matching(part.modules)]
    staging.modules(release, load_order(wanted, tree.read), tree)
    staging.set_modes(part.modes)


def make_initrd(init: bytes, modules: Mapping[Module, Sequence[str]], tree: ModuleTree) -> bytes:
    """Uncompressed: the kernel copies it in less time than it would need to decompress it. The list is guest-init's."""
    lines = "".join(f"{' '.join([module.name, *patterns])}\n" for module, patterns in modules.items())
    return archive(
        [
            Entry.directory("dev"),
            # For the time before devtmpfs: the kernel opens the one for its first process, whose run-time library opens the
            # other where there is no console yet, and aborts without it.
            Entry.character_device("dev/console", 5, 1),
            Entry.character_device("dev/null", 1, 3, 0o666),
            Entry.directory("proc"),
            Entry.directory("sys"),
            Entry.file("init", init, 0o755),
            Entry.directory(MODULE_DIR),
            *(Entry.file(f"{MODULE_DIR}/{module.name}.ko", unsigned(tree.data(module))) for module in modules),
            Entry.file(MODULE_LIST, lines.encode()),
        ]
    )


def _known_packages(store: Store) -> list[str]:
    """Names of the packages in the newest guest, which the next one most likely needs too."""
    guests = store.guests()
    return [package["name"] for package in guests[0].record["inputs"]["packages"]] if guests else []


def _remembering(show: debian.Show) -> debian.Show:
    """Asks about each name once."""
    answers: dict[str, Package] = {}

    def ask(names: Sequence[str]) -> list[Package]:
        if new := [name for name in names if name not in answers]:
            answers.update((package.name, package) for package in show(new))
        return [answers[name] for name in names if name in answers]

    return ask


@contextmanager
def _timed(say: Say, what: str) -> Iterator[None]:
    say(f"{what} ...")
    began = monotonic()
    yield
    say(f"{what}: {monotonic() - began:.1f} s")


def _program(path: Path) -> bytes:
    """Raises NotFound, and InvalidArgument for a program whose libraries the guest would not have."""
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        hint = "it comes with the wheel; from a checkout, build it with cargo and name it with --agent or --init"
        raise NotFound("read program", str(path), "no such file", hint=hint) from error
    if is_elf(data) and (interpreter := linkage(data, path).interpreter):
        hint = "build it with RUSTFLAGS='-C target-feature=+crt-static'"
        raise InvalidArgument("read program", str(path), f"not static, it asks for {interpreter}", hint=hint)
    return data


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    path.chmod(0o644)


def _package_record(package: Package) -> dict[str, str]:
    return {"name": package.name, "version": package.version, "sha256": package.sha256}


def _output_record(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "size": path.stat().st_size}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
