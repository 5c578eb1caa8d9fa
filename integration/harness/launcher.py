"""Drives the launcher as containerd does, inside a private host: for what containerd itself would hide or repeat."""

import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from integration.harness import pods
from integration.harness.containerd import Containerd
from integration.harness.host import Host
from integration.harness.pods import Pod
from integration.harness.process import Process
from integration.harness.scale import SCALE
from integration.harness.waiting import eventually

#: containerd's own patience with `delete`, and ours with `start`.
DELETE_WITHIN: Final = 5.0 * SCALE
START_WITHIN: Final = 60.0 * SCALE

Answer = subprocess.CompletedProcess[bytes]


@dataclass(frozen=True, slots=True)
class Launcher:
    """The binary, for one containerd's address and namespace; bundles are ours, below the host's root."""

    containerd: Containerd
    namespace: str
    #: A configuration for every pod, or None.
    config: Path | None = None

    @property
    def host(self) -> Host:
        return self.containerd.host

    def bundle(self, container_id: str, spec: Any) -> Path:
        """A bundle with this config.json; a str is written as it is, None leaves the file out."""
        path = self.host.root / "b" / container_id
        path.mkdir(parents=True, exist_ok=True)
        if spec is not None:
            (path / "config.json").write_text(spec if isinstance(spec, str) else json.dumps(spec))
        return path

    def start(self, container_id: str, bundle: Path, **env: str) -> Answer:
        return self._run(container_id, bundle, "start", env=env, within=START_WITHIN)

    def delete(self, container_id: str, bundle: Path, **env: str) -> Answer:
        return self._run(container_id, bundle, "-bundle", str(bundle), "delete", env=env, within=DELETE_WITHIN)

    def pod(self, container_id: str) -> Pod:
        return Pod(self.host.run_dir, pods.pod_hash(str(self.containerd.address), self.namespace, container_id))

    def spawn_start(self, container_id: str, bundle: Path) -> "subprocess.Popen[bytes]":
        """A `start` that the test watches, and ends with `process.finish`."""
        return self.host.spawn(self._argv(container_id, bundle, "start"), env=self._variables({}))

    def _run(self, container_id: str, bundle: Path, *verb: str, env: dict[str, str], within: float) -> Answer:
        return self.host.run(self._argv(container_id, bundle, *verb), env=self._variables(env), within=within)

    def _argv(self, container_id: str, bundle: Path, *verb: str) -> list[str | Path]:
        address = str(self.containerd.address)
        flags = ["-namespace", self.namespace, "-address", address, "-publish-binary", "/usr/bin/containerd"]
        return ["env", "--chdir", bundle, "containerd-shim-kata-v2", *flags, "-id", container_id, *verb]

    def _variables(self, more: dict[str, str]) -> dict[str, str]:
        address = str(self.containerd.address)
        config = {"KATA_CONF_FILE": str(self.config)} if self.config else {}
        return {"TTRPC_ADDRESS": f"{address}.ttrpc", "GRPC_ADDRESS": address, "GOMAXPROCS": "2", **config, **more}


def recorded(pod: Pod, what: str) -> Process | None:
    """The process the pod's ledger names, once it is complete; dead or alive. None while there is no such record."""
    if not (pod.directory / "ledger").exists():
        return None
    for record in pod.ledger().live.values():
        if record.fields.get("what") == what and "pid" in record.fields:
            return Process(int(record.fields["pid"]), int(record.fields["start"]))
    return None


def await_settled(pod: Pod, *, until: Callable[[], bool], within: float = 40.0 * SCALE) -> bool:
    """Wait until the pod is as far as ``until`` says, or its daemon is dead; whether the daemon lives."""

    def settled() -> bool:
        daemon = recorded(pod, "daemon")
        return daemon is None or not daemon.alive() or until()

    eventually(f"pod {pod.name} booted or dead", settled, within=within)
    daemon = recorded(pod, "daemon")
    return daemon is not None and daemon.alive()


def booted(pod: Pod) -> bool:
    """The agent in the guest has answered."""
    return any(event.get("event") == "agent-ready" for event in pod.journal())
