"""Running the launcher as containerd runs it, and what it leaves on disk."""

import hashlib
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from integration.harness.process import Process, find

NAMESPACE: Final = "k8s.io"
ADDRESS: Final = "/run/containerd/containerd.sock"
TYPE: Final = "io.kubernetes.cri.container-type"
SANDBOX: Final = "io.kubernetes.cri.sandbox-id"


@dataclass(frozen=True, slots=True)
class Answer:
    """What containerd sees of one run."""

    code: int
    stdout: bytes
    stderr: str

    def ok(self) -> bytes:
        """Stdout of a run that succeeded as the protocol has it: without a word on stderr."""
        assert (self.code, self.stderr) == (0, ""), self
        return self.stdout

    def failed(self) -> str:
        """Stderr of a run that failed as it should: with nothing on stdout."""
        assert (self.code, self.stdout) == (1, b""), self
        return self.stderr


class Shim:
    """A launcher with a run directory and bundles of its own below ``root``."""

    def __init__(self, launcher: Path, root: Path) -> None:
        self.launcher, self.root = launcher, root
        self.run_dir = root / "run"

    def bundle(self, container_id: str, sandbox: str | None = None, **annotations: str) -> Path:
        """A bundle; with ``sandbox`` that of a container in its pod."""
        if sandbox is not None:
            annotations |= {TYPE: "container", SANDBOX: sandbox}
        path = self.root / "bundles" / container_id
        path.mkdir(parents=True, exist_ok=True)
        (path / "config.json").write_text(json.dumps({"ociVersion": "1.1.0", "annotations": annotations}))
        return path

    def start(self, container_id: str, sandbox: str | None = None, *, stdin: bytes = b"", **environ: str) -> Answer:
        """One `start`; the bundle is made when it is not there."""
        bundle = self.root / "bundles" / container_id
        if not bundle.exists():
            self.bundle(container_id, sandbox)
        return self.run(self.argv(container_id, "start"), cwd=bundle, stdin=stdin, environ=environ)

    def delete(self, container_id: str, **environ: str) -> Answer:
        bundle = self.root / "bundles" / container_id
        argv = self.argv(container_id, "-bundle", str(bundle), "delete")
        return self.run(argv, cwd=bundle if bundle.exists() else self.root, environ=environ)

    def argv(self, container_id: str, *rest: str) -> list[str]:
        flags = [
            "-namespace",
            NAMESPACE,
            "-address",
            ADDRESS,
            "-publish-binary",
            "/usr/bin/containerd",
            "-id",
            container_id,
        ]
        return [str(self.launcher), *flags, *rest]

    def run(
        self,
        argv: Sequence[str],
        *,
        cwd: Path | None = None,
        stdin: bytes = b"",
        environ: Mapping[str, str] | None = None,
    ) -> Answer:
        done = subprocess.run(
            argv, cwd=cwd, input=stdin, env=self.environ(environ), capture_output=True, timeout=100, check=False
        )
        return Answer(done.returncode, done.stdout, done.stderr.decode())

    def spawn(
        self, argv: Sequence[str], *, cwd: Path, stdin: int | IO[bytes], environ: Mapping[str, str] | None = None
    ) -> Any:
        """Start a run that the test watches; its streams are pipes."""
        pipe = subprocess.PIPE
        return subprocess.Popen(argv, cwd=cwd, stdin=stdin, stdout=pipe, stderr=pipe, env=self.environ(environ))

    def environ(self, more: Mapping[str, str] | None) -> dict[str, str]:
        """containerd's environment for the launcher; a value of "" removes a variable."""
        environ = {**os.environ, "KATA_SHIMD_RUN_DIR": str(self.run_dir), **(more or {})}
        return {name: value for name, value in environ.items() if value}

    def pod(self, sandbox: str) -> Path:
        """The pod's directory, computed as the contract says."""
        digest = hashlib.sha256("\0".join([ADDRESS, NAMESPACE, sandbox]).encode()).hexdigest()
        return self.run_dir / "pods" / digest[:20]

    def journal(self, sandbox: str) -> Path:
        return self.run_dir / "journal" / f"{self.pod(sandbox).name}.jsonl"

    def lock(self, sandbox: str) -> Path:
        return self.run_dir / "locks" / self.pod(sandbox).name

    def found(self, sandbox: str) -> dict[str, Any]:
        """What the stand-in found when it was started."""
        found: dict[str, Any] = json.loads((self.pod(sandbox) / "found.json").read_text())
        return found

    def daemon(self, sandbox: str) -> Process:
        """The daemon the ledger names."""
        [made] = [line for line in self.ledger(sandbox) if line["op"] == "made" and "start" in line]
        daemon = find(made["pid"])
        assert daemon is not None and daemon.start == made["start"]
        return daemon

    def ledger(self, sandbox: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.pod(sandbox) / "ledger").read_text().splitlines()]

    def record(self, sandbox: str, *lines: Mapping[str, Any]) -> None:
        """Append records, as the daemon would."""
        with (self.pod(sandbox) / "ledger").open("a") as ledger:
            ledger.writelines(json.dumps(line) + "\n" for line in lines)

    def left(self) -> list[str]:
        """What is left of any pod below the run directory."""
        return sorted(
            str(path.relative_to(self.run_dir))
            for part in ("pods", "locks")
            for path in (self.run_dir / part).glob("*")
        )
