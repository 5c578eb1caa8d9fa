"""``crictl``: the tests speak to the CRI as the kubelet does, through its own client."""

import itertools
import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

from integration.harness.cri import CriContainerd
from integration.harness.ctr import PATIENCE, Done
from integration.harness.waiting import eventually

#: Seconds that the client itself gives one call.
TIMEOUT: Final = PATIENCE


@dataclass(frozen=True, slots=True)
class Crictl:
    """The client for one containerd. Configurations are written below ``home``."""

    program: Path
    containerd: CriContainerd
    home: Path
    handler: str = "kata"
    _numbers: "itertools.count[int]" = field(default_factory=itertools.count)

    def argv(self, *words: str | Path) -> list[str]:
        endpoint = f"unix://{self.containerd.address}"
        config = self.home / "crictl.yaml"
        config.touch()  # else it looks for the machine's own
        fixed = [str(self.program), "--config", str(config), "--timeout", f"{TIMEOUT:.0f}s"]
        return [*fixed, "--runtime-endpoint", endpoint, "--image-endpoint", endpoint, *map(str, words)]

    def __call__(self, *words: str | Path, input: bytes | None = None, within: float = PATIENCE) -> Done:
        begin = time.monotonic()
        argv = self.argv(*words)
        done = self.containerd.host.run(argv, input=input, within=within)
        return Done(tuple(argv), done.returncode, done.stdout, done.stderr, time.monotonic() - begin)

    def spawn(self, *words: str | Path, stdin: int | IO[Any] = subprocess.PIPE) -> "subprocess.Popen[bytes]":
        """Start a sub-command with its streams piped; the caller ends it with `process.finish`."""
        return self.containerd.host.spawn(
            self.argv(*words), stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    # --- pods ----------------------------------------------------------------------------------------------------

    def runp_words(self, pod: Mapping[str, Any]) -> list[str]:
        return ["runp", "--runtime", self.handler, str(self._write(pod))]

    def runp(self, pod: Mapping[str, Any]) -> str:
        """Run a pod sandbox; its id."""
        return self(*self.runp_words(pod)).ok().out

    def stopp(self, pod_id: str) -> None:
        self("stopp", pod_id).ok()

    def rmp(self, pod_id: str) -> None:
        """Whatever its state, with all its containers."""
        self("rmp", "--force", pod_id).ok()

    def pods(self) -> dict[str, str]:
        """Pod id → state."""
        return {item["id"]: item["state"] for item in self._json("pods")["items"]}

    # --- containers ----------------------------------------------------------------------------------------------

    def create_words(self, pod_id: str, container: Mapping[str, Any], pod: Mapping[str, Any]) -> list[str]:
        return ["create", pod_id, str(self._write(container)), str(self._write(pod))]

    def create(self, pod_id: str, container: Mapping[str, Any], pod: Mapping[str, Any]) -> str:
        """Create a container of the pod; its id."""
        return self(*self.create_words(pod_id, container, pod)).ok().out

    def start(self, container_id: str) -> None:
        self("start", container_id).ok()

    def run(self, pod_id: str, container: Mapping[str, Any], pod: Mapping[str, Any]) -> str:
        """Create and start; its id."""
        container_id = self.create(pod_id, container, pod)
        self.start(container_id)
        return container_id

    def exec(self, container_id: str, *argv: str, sync: bool = True, input: bytes | None = None) -> Done:
        """ExecSync, or the streamed Exec; the exit code is the client's, which is 1 for every other of the command's."""
        how = ["--sync"] if sync else (["--interactive"] if input is not None else [])
        return self("exec", *how, container_id, *argv, input=input)

    def inspect(self, container_id: str) -> dict[str, Any]:
        return dict(self._json("inspect", container_id))

    def inspectp(self, pod_id: str) -> dict[str, Any]:
        return dict(self._json("inspectp", pod_id))

    def state(self, container_id: str) -> str:
        return str(self.inspect(container_id)["status"]["state"])

    def await_exit(self, container_id: str, *, within: float = PATIENCE) -> int:
        """Wait until the CRI has learnt of the container's end; its exit code."""
        eventually("the container's exit", lambda: self.state(container_id) == "CONTAINER_EXITED", within=within)
        return int(self.inspect(container_id)["status"]["exitCode"])

    def logs(self, container_id: str) -> str:
        return self("logs", container_id).ok().stdout.decode()

    def stats(self, container_id: str) -> dict[str, Any]:
        (one,) = self._json("stats", container_id)["stats"]
        return dict(one)

    def statsp(self, pod_id: str) -> dict[str, Any]:
        """Of a pod and all its containers: what the CRI calls its linux statistics."""
        (one,) = self._json("statsp", pod_id)["stats"]
        return dict(one["linux"])

    # --- small things --------------------------------------------------------------------------------------------

    def _json(self, *words: str) -> Any:
        return json.loads(self(words[0], "--output", "json", *words[1:]).ok().stdout)

    def _write(self, content: Mapping[str, Any]) -> Path:
        file = self.home / f"{next(self._numbers)}.json"
        file.write_text(json.dumps(content))
        return file


Argv = Sequence[str]
