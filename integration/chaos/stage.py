"""Where a failure is played: a private containerd, pods with short deadlines, and things of ours that the path has to wait for.

A *hold* is such a thing: a logger that says it is ready, or reads, only when told, and the lock of a pod. While it is not let
go, `start`, Create, an exec's Start or Delete is under way for certain, and will not end by itself.
"""

import fcntl
import json
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from integration.chaos.probe import Shim
from integration.harness import process
from integration.harness.containerd import Containerd
from integration.harness.ctr import PATIENCE, Ctr
from integration.harness.host import Host
from integration.harness.pods import Pod, pod_hash
from integration.harness.scale import SCALE
from integration.harness.waiting import eventually
from kata_shimd.debug import pods, why
from kata_shimd.debug.verdict import Verdict

#: Short, so that a deadline which has to pass can be waited for; not so short that emulation alone would miss them.
TIMEOUTS: Final[Mapping[str, float]] = {
    "health": 3,
    "health_interval": 1,
    "kill": 3,
    "agent_rpc": 10,
    "stop_agent": 2,
    "stop_quit": 1,
    "stop_term": 1,
    "drain": 3,
    "output_stall": 20,
    "execs_end": 3,
    "create_wait": 15,
    "hotplug": 60,
}

_LOGGER: Final = """\
#!/bin/sh
# Takes a container's output into a file; says it is ready (before=ready), or reads (before=read), only when told.
where=$2
: > "$where/held"
if [ "$1" = ready ]; then read -r _ < "$where/go"; fi
exec 5>&-
if [ "$1" = read ]; then read -r _ < "$where/go"; fi
exec cat <&3 > "$where/out"
"""


def configuration(dial: float = 60.0, *, hypervisor: Mapping[str, Any] | None = None, **shimd: Any) -> str:
    """A configuration file for pods that fail; deadlines are in seconds, multiplied by the accelerator's factor."""
    tables: dict[str, Mapping[str, Any]] = {
        "hypervisor.qemu": {"default_memory": 256, **(hypervisor or {})},
        "agent.kata": {"dial_timeout": dial},
        "runtime": {"create_container_timeout": 60},
        "factory": {"enable_template": False},
        "shimd": {"time_scale": SCALE, **shimd},
        "shimd.timeouts": TIMEOUTS,
    }
    return "".join(f"[{name}]\n{_values(table)}" for name, table in tables.items())


def _values(table: Mapping[str, Any]) -> str:
    """JSON's texts, numbers and lists are TOML's too."""
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())


class LoggerHold:
    """A logger that waits for a line on a FIFO."""

    def __init__(self, where: Path) -> None:
        self._where = where
        self._fd = -1
        where.mkdir()
        os.mkfifo(where / "go")

    @property
    def output(self) -> str:
        """What the logger has taken so far."""
        file = self._where / "out"
        return file.read_text() if file.exists() else ""

    def held(self) -> bool:
        return (self._where / "held").exists()

    def let_go(self) -> None:
        """The FIFO stays open until `close`, for its reader may not have come to it yet."""
        if self._fd < 0:
            self._fd = os.open(self._where / "go", os.O_RDWR | os.O_NONBLOCK)
            os.write(self._fd, b"go\n")

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)


class LockHold:
    """The lock of a pod, for which `start` waits (docs/contracts.md)."""

    def __init__(self, path: Path, waiting: Callable[[], bool]) -> None:
        self.held = waiting
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def let_go(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def close(self) -> None:
        self.let_go()


Hold = LoggerHold | LockHold


class Stage:
    """The surroundings of many plays. Each play uses ids of its own."""

    def __init__(self, host: Host, containerd: Containerd, ctr: Ctr) -> None:
        self.host, self.containerd = host, containerd
        self.directory = host.root / "chaos"
        self.directory.mkdir(exist_ok=True)
        self.config = self.directory / "configuration.toml"
        self.config.write_text(configuration())
        self.ctr = replace(ctr, config=self.config)
        self._logger = self.directory / "logger"
        self._logger.write_text(_LOGGER)
        self._logger.chmod(0o755)

    # --- pods ----------------------------------------------------------------------------------------------------

    def pod(self, sandbox_id: str) -> Pod:
        address = str(self.containerd.address)
        return Pod(self.host.run_dir, pod_hash(address, self.ctr.namespace, sandbox_id))

    def shim(self, sandbox_id: str) -> Shim:
        return Shim(self.pod(sandbox_id).directory)

    def verdict(self, sandbox_id: str) -> Verdict:
        """What ``kata-shimd why`` says of a pod, live or dead."""
        return why.explain(pods.load(self.host.run_dir, self.pod(sandbox_id).name)).verdict

    def await_event(self, sandbox_id: str, event: str, *, within: float = PATIENCE, **fields: Any) -> Mapping[str, Any]:
        """The first journal entry of this kind with these fields, when there is one."""
        pod = self.pod(sandbox_id)

        def look() -> Mapping[str, Any] | None:
            for entry in pod.journal():
                if entry["event"] == event and all(entry.get(key) == value for key, value in fields.items()):
                    return entry
            return None

        found = eventually(f"{event} {fields} in the journal of {sandbox_id}", look, within=within)
        assert found is not None
        return found

    def daemon_lives(self, sandbox_id: str) -> bool:
        with suppress(Exception):
            return self.pod(sandbox_id).process("daemon").alive()
        return False

    # --- holds ---------------------------------------------------------------------------------------------------

    def hold_logger(self, name: str, before: str) -> tuple[str, LoggerHold]:
        """A logger that waits ``before`` "ready" or "read": its URI, and its hold."""
        where = self.directory / f"{name}-{before}"
        return f"binary://{self._logger}?{before}={where}", LoggerHold(where)

    def hold_lock(self, sandbox_id: str) -> LockHold:
        """`start` of this pod is under way, and waits."""
        path = self.host.run_dir / "locks" / self.pod(sandbox_id).name
        return LockHold(path, lambda: self.starting(sandbox_id) is not None)

    def starting(self, sandbox_id: str) -> process.Process | None:
        """The launcher of the `start` that is under way, a child of containerd."""
        for found in process.descendants(self.containerd.pid):
            words = found.command().split()
            if words[-1] == "start" and words[words.index("-id") + 1 :][:1] == [sandbox_id]:
                return found
        return None

    # --- containerd ----------------------------------------------------------------------------------------------

    def restart(self, **env: str) -> None:
        """containerd again, politely ended or killed before; with ``env`` in its launchers' environment."""
        self.containerd.stop()
        self.containerd.start(**env)

    def exit_status(self, container_id: str) -> int | None:
        """Delete the task, and what containerd tells of its end; None when there is no such task.

        ctr ends with 0 whatever the status was, and warns of one that is not 0.
        """
        done = self.ctr.delete_task(container_id)
        if told := re.search(r"exit code (\d+)", done.err):
            return int(told[1])
        return 0 if done.code == 0 else None

    def remove(self, *ids: str) -> None:
        """Everything of these containers, whatever has become of them; asked again when something was half done."""
        for name in ids:
            eventually(f"{name} removed", lambda name=name: self._removed(name), within=PATIENCE)

    def _removed(self, name: str) -> bool:
        self.ctr.remove(name)
        return name not in self.ctr.containers()
