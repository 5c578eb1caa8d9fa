"""containerd's own client, ``ctr``: every test speaks to the shim the way an operator does."""

import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, Self

from integration.harness.containerd import Containerd
from integration.harness.image import IMAGE_PATH
from integration.harness.scale import SCALE

#: Seconds one client call may take; a pod boots well inside it.
PATIENCE: Final = 45.0 * SCALE

KATA: Final = "io.containerd.kata.v2"
RUNC: Final = "io.containerd.runc.v2"


@dataclass(frozen=True, slots=True)
class Done:
    """A finished client call."""

    argv: tuple[str, ...]
    code: int
    stdout: bytes
    stderr: bytes
    seconds: float

    @property
    def out(self) -> str:
        return self.stdout.decode(errors="replace").strip()

    @property
    def err(self) -> str:
        return self.stderr.decode(errors="replace").strip()

    def ok(self) -> Self:
        """Assert success, showing everything otherwise."""
        assert self.code == 0, self
        return self

    def __str__(self) -> str:
        return f"{' '.join(self.argv)}\nexit code {self.code} after {self.seconds:.2f} s\nstdout: {self.out}\nstderr: {self.err}"


@dataclass(frozen=True, slots=True)
class Ctr:
    """``ctr`` for one containerd, namespace, runtime and image."""

    containerd: Containerd
    namespace: str
    runtime: str = KATA
    image: str = ""
    #: A configuration file of Kata's form for every pod, or None.
    config: Path | None = None

    def argv(self, *words: str | Path) -> list[str]:
        address = str(self.containerd.address)
        return [str(self.containerd.client), "--address", address, "--namespace", self.namespace, *map(str, words)]

    def __call__(self, *words: str | Path, input: bytes | None = None, within: float = PATIENCE) -> Done:
        """Run any sub-command to its end."""
        begin = time.monotonic()
        argv = self.argv(*words)
        done = self.containerd.host.run(argv, input=input, within=within)
        return Done(tuple(argv), done.returncode, done.stdout, done.stderr, time.monotonic() - begin)

    def spawn(self, *words: str | Path, stdin: int | IO[Any] = subprocess.DEVNULL) -> "subprocess.Popen[bytes]":
        """Start a sub-command with stdout and stderr piped; the caller ends it with `process.finish`."""
        return self.containerd.host.spawn(
            self.argv(*words), stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def run_words(
        self,
        container_id: str,
        *argv: str,
        rootfs: Path | None = None,
        options: Sequence[str] = (),
        annotations: Mapping[str, str] | None = None,
        config: Path | None = None,
    ) -> list[str]:
        """The words of ``ctr run``, from an image or a directory."""
        words = ["run", "--runtime", self.runtime, *options]
        if chosen := config or self.config:
            words += ["--runtime-config-path", str(chosen)]
        for key, value in (annotations or {}).items():
            words += ["--annotation", f"{key}={value}"]
        # A directory brings no environment along, and ctr invents none.
        source = ["--env", IMAGE_PATH, "--rootfs", str(rootfs)] if rootfs else [self.image]
        return [*words, *source, container_id, *argv]

    def run(
        self, container_id: str, *argv: str, input: bytes | None = None, within: float = PATIENCE, **how: Any
    ) -> Done:
        """``ctr run --rm``: the exit code is the container's; ``how`` as in `run_words`."""
        how["options"] = ["--rm", *how.get("options", ())]
        return self(*self.run_words(container_id, *argv, **how), input=input, within=within)

    def start(self, container_id: str, *argv: str, **how: Any) -> None:
        """``ctr run --detach`` with no stdio: the container lives until `remove`."""
        how["options"] = ["--detach", "--null-io", *how.get("options", ())]
        self(*self.run_words(container_id, *argv, **how)).ok()

    def exec(
        self,
        container_id: str,
        exec_id: str,
        *argv: str,
        options: Sequence[str] = (),
        input: bytes | None = None,
        within: float = PATIENCE,
    ) -> Done:
        """``ctr task exec``; the exit code is the process's."""
        return self("task", "exec", "--exec-id", exec_id, *options, container_id, *argv, input=input, within=within)

    def kill(self, container_id: str, signal: str = "SIGKILL", *options: str) -> Done:
        return self("task", "kill", "--signal", signal, *options, container_id)

    def delete_task(self, container_id: str, *options: str) -> Done:
        return self("task", "delete", *options, container_id)

    def remove(self, container_id: str) -> None:
        """Whatever its state: the task is killed and deleted, then the container; both may be gone already."""
        self("task", "delete", "--force", container_id)
        self("containers", "delete", container_id)

    def tasks(self) -> dict[str, tuple[int, str]]:
        """Container id → (pid, status)."""
        rows = [line.split() for line in self("task", "ls").ok().out.splitlines()[1:]]
        return {row[0]: (int(row[1]), row[2]) for row in rows}

    def containers(self) -> list[str]:
        return self("containers", "ls", "--quiet").ok().out.split()
