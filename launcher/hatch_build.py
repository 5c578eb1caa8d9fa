"""Builds the Rust programs into the wheel: the launcher as a script, the guest's programs as package data.

Needs cargo and nothing else. Each program is built in a target directory of its own, kept between builds, so a second build
takes seconds; ``KATA_SHIMD_CARGO_TARGET_DIR`` says where, else it is ``build/cargo``. A program that cannot be built is an
error: there is no wheel with something missing.
"""

import os
import shutil
import subprocess
import sysconfig
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


@dataclass(frozen=True, slots=True)
class Program:
    """A program to build. Without ``data`` (its path in the wheel) it is installed as a script, on the PATH."""

    crate: str
    name: str
    data: str | None = None
    #: Linked to nothing: the guest has no libraries.
    static: bool = False


PROGRAMS = (
    Program("launcher", "containerd-shim-kata-v2"),
    Program("guest/agent", "kata-agent", "kata_shimd/image/bin/kata-agent", static=True),
    Program("guest/init", "guest-init", "kata_shimd/image/bin/guest-init", static=True),
    Program("guest/init", "trivial-init", "kata_shimd/image/bin/trivial-init", static=True),
)


class BuildHook(BuildHookInterface[Any]):
    """What hatchling calls before it makes the wheel."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build every program and tell hatchling where it goes.

        :raises RuntimeError: a program cannot be built
        """
        root = Path(self.root)
        check_version(root, self.metadata.version)
        target = Path(os.environ.get("KATA_SHIMD_CARGO_TARGET_DIR") or root / "build/cargo").absolute()
        for program in PROGRAMS:
            built = str(build(root, target, program))
            if program.data is None:
                build_data["shared_scripts"][built] = program.name
            else:
                build_data["force_include"][built] = program.data
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"


def check_version(root: Path, version: str) -> None:
    """The launcher says its version to containerd: it must be the package's."""
    crate = tomllib.loads((root / "launcher/Cargo.toml").read_text())["package"]["version"]
    if crate != version:
        raise RuntimeError(
            f"build wheel: launcher/Cargo.toml: version {crate}, the package is {version}; make them the same"
        )


def build(root: Path, target: Path, program: Program) -> Path:
    """Build one program; its path.

    Always for a named target: rustc's flags are then not used for the macros and build scripts that run here.

    :raises RuntimeError: no such crate, no cargo, or cargo failed
    """
    manifest = root / program.crate / "Cargo.toml"
    if not manifest.is_file():
        raise RuntimeError(f"build wheel: {manifest}: not found; the source tree is incomplete")
    cargo = shutil.which("cargo")
    if cargo is None:
        raise RuntimeError("build wheel: cargo: not found; install Rust 1.87 or newer and put cargo on the PATH")
    triple = host_triple()
    directory = target / program.name
    argv: list[str | Path] = [
        cargo,
        "build",
        "--release",
        "--manifest-path",
        manifest,
        "--bin",
        program.name,
        "--target",
        triple,
    ]
    environ = {**os.environ, "CARGO_TARGET_DIR": str(directory), "CARGO_ENCODED_RUSTFLAGS": rustflags(root, program)}
    status = subprocess.run(argv, env=environ, check=False).returncode
    if status != 0:
        raise RuntimeError(f"build wheel: {program.crate}: cargo failed with status {status}; its output is above")
    return directory / triple / "release" / program.name


def rustflags(root: Path, program: Program) -> str:
    """Flags of rustc, separated as CARGO_ENCODED_RUSTFLAGS wants them. No path of this machine ends up in the program."""
    cargo_home = Path(os.environ.get("CARGO_HOME") or Path.home() / ".cargo")
    flags = [f"--remap-path-prefix={cargo_home}=cargo", f"--remap-path-prefix={root}=."]
    if program.static:
        flags += ["-C", "target-feature=+crt-static"]
    return "\x1f".join(flags)


def host_triple() -> str:
    """The target rustc builds for by itself: ``x86_64-unknown-linux-gnu``."""
    try:
        said = subprocess.run(["rustc", "-vV"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise RuntimeError(f"build wheel: rustc -vV: {error}; install Rust 1.87 or newer") from error
    return next(line.removeprefix("host: ") for line in said.splitlines() if line.startswith("host: "))
