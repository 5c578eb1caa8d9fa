"""Programs built from Go modules, pinned: the newest containerd and its ``ctr``, and Kubernetes' CRI tools.

A module comes through Go's module proxy and its content must have the hash pinned here; what it depends on is pinned by its own
go.sum. The programs stay in the cache, in a directory named by the version, so that the build happens once a machine.
"""

import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from integration.harness.install import Layout
from integration.harness.steps import Step, StepFailed, Steps

#: The floor of the modules below; an older ``go`` would fetch a toolchain, which is not pinned here.
GO: Final = (1, 26)


@dataclass(frozen=True, slots=True)
class Module:
    """One module at one version: its hash as ``go mod download`` gives it, and what to build of it."""

    name: str
    path: str
    version: str
    sum: str
    #: Program → the package it is built from; a test binary where the package holds tests alone.
    programs: Mapping[str, str]
    tests: tuple[str, ...] = ()
    #: Variable that is given the version, since a build from a module is not stamped.
    stamp: str = ""

    def home(self, cache: Path) -> Path:
        return cache / "go" / f"{self.name}-{self.version.removeprefix('v')}"


CONTAINERD: Final = Module(
    "containerd",
    "github.com/containerd/containerd/v2",
    "v2.4.2",
    "h1:p6Qg+xbEz8lvwdhHDx0U469xENvp4LgGBx+E7djXkGw=",
    {"containerd": "./cmd/containerd", "ctr": "./cmd/ctr"},
    stamp="github.com/containerd/containerd/v2/version.Version",
)
CRI_TOOLS: Final = Module(
    "cri-tools",
    "sigs.k8s.io/cri-tools",
    "v1.37.0",
    "h1:BmTImEoTX3KPXCLwmIU9mfCC8umUqF4R8WibY9eVU9Y=",
    {"crictl": "./cmd/crictl", "critest": "./cmd/critest"},
    tests=("critest",),
    stamp="sigs.k8s.io/cri-tools/pkg/version.Version",
)
MODULES: Final = (CONTAINERD, CRI_TOOLS)
#: runc's shim of that containerd, which Debian's older one cannot stand in for. Built where something is to be run with runc.
RUNC_SHIM: Final = Module(
    "containerd-shim-runc",
    CONTAINERD.path,
    CONTAINERD.version,
    CONTAINERD.sum,
    {"containerd-shim-runc-v2": "./cmd/containerd-shim-runc-v2"},
    stamp=CONTAINERD.stamp,
)


def ensure(layout: Layout, steps: Steps | None = None, modules: Sequence[Module] = MODULES) -> dict[str, Path]:
    """Build whatever is missing; name → directory of programs.

    :raises StepFailed: no ``go``, no proxy, another content than pinned, or a build that fails
    """
    steps = steps or Steps("go")
    with _one_at_a_time(layout.cache):
        for module in modules:
            if _built(module, layout.cache):
                continue
            with steps.step(f"{module.name} {module.version} from its Go module") as step:
                _build(step, module, layout.cache)
    return {module.name: module.home(layout.cache) for module in modules}


def _built(module: Module, cache: Path) -> bool:
    return all((module.home(cache) / program).exists() for program in module.programs)


def _build(step: Step, module: Module, cache: Path) -> None:
    """Build into a draft beside the place, so that a directory of that name is always whole."""
    _check_go(step)
    source = _download(step, module)
    home = module.home(cache)
    draft = home.with_name(f".{home.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    shutil.rmtree(home, ignore_errors=True)
    draft.mkdir(parents=True)
    flags = ["-trimpath", "-mod=readonly", "-ldflags", f"-s -w -X {module.stamp}={module.version}"]
    for program, package in module.programs.items():
        verb = ["test", "-c"] if program in module.tests else ["build"]
        argv: list[str | Path] = ["nice", "go", *verb, *flags, "-o", draft / program, package]
        step.run(argv, env=_environment(), cwd=source, hint="see what the compiler says above")
    draft.rename(home)
    step.note(str(home))


def _environment() -> dict[str, str]:
    """Static programs, and none of the caller's own build flags."""
    return os.environ | {"CGO_ENABLED": "0", "GOFLAGS": "", "GOTOOLCHAIN": "local"}


def _check_go(step: Step) -> None:
    hint = f"install Go {GO[0]}.{GO[1]} or newer, and put it on the PATH"
    if shutil.which("go") is None:
        raise StepFailed(step.name, "go is not on the PATH", hint)
    said = subprocess.run(["go", "env", "GOVERSION"], env=_environment(), capture_output=True, text=True, check=True)
    number = said.stdout.strip().removeprefix("go").split(".")
    if tuple(int(part) for part in number[:2]) < GO:
        raise StepFailed(step.name, f"go is {said.stdout.strip()}", hint)


def _download(step: Step, module: Module) -> Path:
    """The module's sources, of the content that is pinned."""
    argv = ["go", "mod", "download", "-json", f"{module.path}@{module.version}"]
    done = subprocess.run(argv, env=_environment(), cwd="/", capture_output=True, text=True, check=False)
    if done.returncode != 0:
        why = json.loads(done.stdout).get("Error", "") if done.stdout else done.stderr.strip()
        raise StepFailed(step.name, why, "is the Go module proxy reachable (go env GOPROXY)?")
    got = json.loads(done.stdout)
    if got["Sum"] != module.sum:
        raise StepFailed(step.name, f"the module's content is {got['Sum']}, not {module.sum}", "do not use it")
    return Path(got["Dir"])


@contextmanager
def _one_at_a_time(cache: Path) -> Iterator[None]:
    """Two test runs that both find nothing build once."""
    (cache / "go").mkdir(parents=True, exist_ok=True)
    with (cache / "go/.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
