"""Installs everything from this checkout: distribution packages, the wheel in a venv of its own, links, the guest.

Every step finds out by itself whether there is something to do, so that a second run takes seconds: packages are asked for by
name, and what is built from sources carries a stamp with the sources' hash. Runs with nothing but the standard library, on a
machine that has Python and Rust and a connection to the distribution's and the languages' package registries.
"""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from integration.harness.steps import Step, StepFailed, Steps

REPOSITORY: Final = Path(__file__).resolve().parents[2]
#: What pods need, and the builder of their guest. The Dockerfile installs the same.
POD_PACKAGES: Final = ("qemu-system-x86", "squashfs-tools", "iproute2", "util-linux", "python3", "python3-venv")
#: What the demo and the tests need besides.
PACKAGES: Final = (
    *POD_PACKAGES,
    "containerd",
    "runc",
    "crun",
    "busybox-static",
    "containernetworking-plugins",
    "iptables",
    "systemd",
)
#: Debian 12 has it in one of QEMU's packages, later ones in a package of its own.
VIRTIOFSD: Final = ("/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd")
PYTHON: Final = (3, 11)
#: Beyond the programs themselves, what the wheel is made of.
WHEEL_SOURCES: Final = ("pyproject.toml", "README.md", "LICENSE", "kata_shimd", "launcher", "guest", "protos")
COMMANDS: Final = ("containerd-shim-kata-v2", "kata-shimd")
LINKS: Final = Path("/usr/local/bin")
GUEST: Final = Path("/var/lib/kata-shimd/guest/current")


@dataclass(frozen=True, slots=True)
class Layout:
    """Where things go: KATA_SHIMD_PREFIX and KATA_SHIMD_CACHE, with their defaults."""

    prefix: Path
    cache: Path

    @classmethod
    def from_environment(cls) -> "Layout":
        prefix = os.environ.get("KATA_SHIMD_PREFIX", "/opt/kata-shimd")
        return cls(Path(prefix), Path(os.environ.get("KATA_SHIMD_CACHE", "/var/cache/kata-shimd")))

    @property
    def python(self) -> Path:
        return self.prefix / "bin/python3"

    @property
    def programs(self) -> Path:
        """The guest's programs in the installed wheel; of one Python at a time, since a venv is made anew for another."""
        (package,) = self.prefix.glob("lib/python3*/site-packages/kata_shimd")
        return package / "image/bin"

    @property
    def dev_python(self) -> Path:
        """The tests' own venv: linters and pytest never get into the one that serves pods."""
        return self.cache / "dev/bin/python3"


def install(layout: Layout, steps: Steps) -> None:
    """Do whatever is missing.

    :raises StepFailed: saying what, why and what to do
    """
    _require_root()
    with _one_at_a_time(layout):
        with steps.step("distribution packages") as step:
            _packages(step)
        with steps.step("virtual environment") as step:
            _venv(step, layout.prefix)
        with steps.step("wheel: daemon, launcher, guest programs") as step:
            _wheel(step, layout)
        with steps.step("commands on the PATH") as step:
            _links(step, layout)
        with steps.step("guest kernel and image") as step:
            _guest(step, layout)


def install_dev(layout: Layout, steps: Steps) -> None:
    """The tests' venv with the project's dependencies and development tools, as pyproject.toml lists them."""
    with _one_at_a_time(layout), steps.step("test tools") as step:
        project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
        wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
        home = layout.cache / "dev"
        _venv(step, home)
        stamp = _Stamp(home, "requirements", hashlib.sha256("\n".join(wanted).encode()).hexdigest())
        if stamp.fresh():
            step.note("as before")
            return
        step.run([layout.dev_python, "-m", "pip", "install", "--quiet", *wanted], hint=_REGISTRY_HINT)
        stamp.write()


def source_hash(names: Iterable[str]) -> str:
    """A hash of the content of files and trees in the repository; compiled and built things do not count."""
    digest = hashlib.sha256()
    for name in names:
        for file in _files(REPOSITORY / name):
            digest.update(f"{file.relative_to(REPOSITORY)}\0{os.access(file, os.X_OK)}\0".encode())
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


_REGISTRY_HINT: Final = "is the package registry reachable (pip config list)? run the command again when it is"
_BUILD_HINT: Final = (
    "mend what the compiler says above; if it is a download that failed, see that the registries are reachable"
)
_APT_HINT: Final = "see that apt's sources are reachable (/etc/apt), then run this command again"


@dataclass(frozen=True, slots=True)
class _Stamp:
    """Remembers of what a thing was made."""

    home: Path
    name: str
    value: str

    @property
    def _file(self) -> Path:
        return self.home / f".{self.name}.stamp"

    def fresh(self) -> bool:
        try:
            return bool(json.loads(self._file.read_text()) == self.value)
        except (OSError, ValueError):
            return False

    def write(self) -> None:
        self._file.write_text(json.dumps(self.value))


def _require_root() -> None:
    if os.geteuid() != 0:
        raise StepFailed("setup", "not root", "run it with sudo: it installs packages, and pods need root anyway")
    if sys.version_info < PYTHON:
        raise StepFailed(
            "setup", f"Python {sys.version.split()[0]}", "run it with Python 3.11 or newer (Debian 12 has it)"
        )


@contextmanager
def _one_at_a_time(layout: Layout) -> Iterator[None]:
    layout.cache.mkdir(parents=True, exist_ok=True)
    with (layout.cache / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _packages(step: Step) -> None:
    if shutil.which("dpkg-query") is None or shutil.which("apt-get") is None:
        missing = [
            name for name in ("qemu-system-x86_64", "containerd", "mksquashfs", "ip") if shutil.which(name) is None
        ]
        if missing:
            raise StepFailed(
                step.name, "this is not Debian (no apt-get)", f"install what provides: {' '.join(missing)}"
            )
        step.note("not Debian; the programs are there")
        return
    missing = [name for name in PACKAGES if not _installed(name)]
    if missing:
        _apt_install(step, missing, update=True)
    if not any(map(os.path.exists, VIRTIOFSD)):
        _apt_install(step, ["virtiofsd"], update=not missing)
        missing.append("virtiofsd")
    step.note(f"installed {' '.join(missing)}" if missing else f"all {len(PACKAGES)} are there")


def _apt_install(step: Step, packages: list[str], *, update: bool) -> None:
    env = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    if update:
        step.run(["apt-get", "update"], env=env, hint=_APT_HINT)
    step.run(["apt-get", "install", "--yes", "--no-install-recommends", *packages], env=env, hint=_APT_HINT)


def _installed(package: str) -> bool:
    argv = ["dpkg-query", "--show", "--showformat=${db:Status-Status}", package]
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout == "installed"


def _venv(step: Step, home: Path) -> None:
    """A venv of the distribution's Python, which starts faster than a version manager's shim and is kept patched."""
    python = _interpreter()
    stamp = _Stamp(home, "python", python)
    if stamp.fresh() and (home / "bin/python3").exists():
        step.note("as before")
        return
    step.run([python, "-m", "venv", "--clear", home], hint="apt-get install python3-venv")
    stamp.write()
    step.note(f"of {python}")


def _interpreter() -> str:
    for python in ("/usr/bin/python3", sys.executable):
        asked = f"import sys; sys.exit(sys.version_info < {PYTHON})"
        if Path(python).exists() and subprocess.run([python, "-c", asked], check=False).returncode == 0:
            return python
    raise StepFailed("virtual environment", "no Python 3.11 or newer", "install Debian 12's python3, or a newer one")


def _wheel(step: Step, layout: Layout) -> None:
    stamp = _Stamp(layout.prefix, "wheel", source_hash(WHEEL_SOURCES))
    if stamp.fresh() and all((layout.prefix / "bin" / name).exists() for name in COMMANDS):
        step.note("sources as before")
        return
    if shutil.which("cargo") is None:
        raise StepFailed(
            step.name,
            "cargo is not on the PATH; the launcher and the guest's programs are Rust (1.87 or newer)",
            "install Rust from rust-lang.org (rustup), since Debian 12's rustc 1.63 is too old; then run this command again",
        )
    env = os.environ | {"KATA_SHIMD_CARGO_TARGET_DIR": str(layout.cache / "cargo")}
    wheels = layout.cache / "wheel"
    shutil.rmtree(wheels, ignore_errors=True)
    pip: list[str | Path] = [layout.python, "-m", "pip"]
    step.run([*pip, "wheel", "--verbose", "--no-deps", "--wheel-dir", wheels, REPOSITORY], env=env, hint=_BUILD_HINT)
    (wheel,) = wheels.glob("*.whl")
    step.run([*pip, "install", "--force-reinstall", "--no-deps", "--no-compile", wheel], hint=_REGISTRY_HINT)
    step.run([*pip, "install", wheel], hint=_REGISTRY_HINT)
    # containerd starts the daemon as root with a clean view: byte code must be there, it may not be writable later.
    step.run([layout.python, "-m", "compileall", "-q", layout.prefix / "lib"])
    stamp.write()
    step.note("built and installed")


def _links(step: Step, layout: Layout) -> None:
    for name in COMMANDS:
        link, target = LINKS / name, layout.prefix / "bin" / name
        if link.is_symlink() and link.readlink() == target:
            continue
        if link.exists() and not link.is_symlink():
            raise StepFailed(step.name, f"{link} is a file of somebody else", "remove it, or set another prefix")
        fresh = link.with_name(f".{name}.new")
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(target)
        fresh.replace(link)
        step.note(f"in {LINKS}")


def _guest(step: Step, layout: Layout) -> None:
    """The builder knows its inputs itself; asking it costs seconds, so not asking is decided by the wheel's stamp."""
    stamp = _Stamp(layout.prefix, "guest", source_hash(("guest", "kata_shimd/image")))
    if stamp.fresh() and (GUEST / "manifest.json").exists():
        step.note("as before")
        return
    env = os.environ | {"LC_ALL": "C.UTF-8"}
    if not any(Path("/var/lib/apt/lists").glob("*_Packages*")):
        step.run(["apt-get", "update"], env=env, hint=_APT_HINT)
    step.run([layout.prefix / "bin/kata-shimd", "guest", "build"], env=env, hint=_APT_HINT)
    stamp.write()
    step.note(f"{GUEST.resolve().name}")


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    for top, directories, files in os.walk(path):
        directories[:] = sorted(name for name in directories if name not in ("__pycache__", "target", ".git"))
        yield from (Path(top, name) for name in sorted(files) if _counts(name))


def _counts(name: str) -> bool:
    return not (name.endswith(".pyc") or name.startswith("test_") or name in ("conftest.py", "Cargo.lock"))
