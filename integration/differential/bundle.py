"""What a container is made of: bundle, OCI spec and the FIFOs of its processes, with the flaws that a sequence asks for."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from integration.differential.steps import ARGV, Call, Program, Rpc
from kata_shimd.api import containerd_types, task, wkt

#: OCI's JSON inside an Any (`containerd.md` §2.4).
PROCESS_URL: Final = "types.containerd.io/opencontainers/runtime-spec/1/Process"
RESOURCES_URL: Final = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"

CAPABILITIES: Final = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
]
NO_FILES: Final = ["nosuid", "noexec", "nodev"]
MOUNTS: Final = [
    {"destination": "/proc", "type": "proc", "source": "proc", "options": NO_FILES},
    {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=65536k"]},
    {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666"]},
]


def process(program: Program, *, terminal: bool) -> dict[str, Any]:
    """An OCI process."""
    return {
        "terminal": terminal,
        "user": {"uid": 0, "gid": 0},
        "args": list(ARGV[program]),
        "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
        "cwd": "/",
        "noNewPrivileges": True,
        "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), CAPABILITIES),
    }


def spec(program: Program, *, terminal: bool, cgroup: str, annotations: dict[str, str]) -> dict[str, Any]:
    """An OCI spec, as containerd writes one."""
    return {
        "ociVersion": "1.0.2",
        "process": process(program, terminal=terminal),
        "root": {"path": "rootfs"},
        "hostname": "differential",
        "mounts": MOUNTS,
        "annotations": annotations,
        "linux": {
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "cgroupsPath": cgroup,
            "namespaces": [{"type": name} for name in ("pid", "ipc", "uts", "mount", "network")],
            "maskedPaths": ["/proc/kcore"],
            "readonlyPaths": ["/proc/sys"],
        },
    }


class Stdio:
    """The FIFOs of one process and our ends of them, as containerd's client has them. Closed with `close`."""

    def __init__(self, directory: Path, call: Call) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        wanted = {"stdin": call.stdin, "stdout": True, "stderr": not call.terminal}
        self.paths = {name: str(directory / name) if there else "" for name, there in wanted.items()}
        self._fds: dict[str, int] = {}
        for name in ("stdin", "stdout", "stderr"):
            if path := self.paths[name]:
                os.mkfifo(path, 0o700)
                # Our end of stdin must open before its reader is there, which only a descriptor for both allows.
                flags = os.O_RDWR if name == "stdin" else os.O_RDONLY
                self._fds[name] = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)

    def reader(self) -> int:
        """The descriptor to read its output from."""
        return self._fds["stdout"]

    def end_input(self, data: bytes) -> None:
        """Send the last of stdin and close our end of it."""
        if (fd := self._fds.pop("stdin", None)) is not None:
            os.write(fd, data)
            os.close(fd)

    def close(self) -> None:
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle directory of a container that is to be created."""

    path: Path
    rootfs: Path

    def write(self, content: dict[str, Any]) -> None:
        (self.path / "rootfs").mkdir(parents=True, exist_ok=True)
        (self.path / "config.json").write_text(json.dumps(content))

    def create(self, call: Call, container_id: str, paths: Mapping[str, str]) -> task.CreateTaskRequest:
        """The request for it; what `call.flaw` says is done to bundle or request."""
        mount = containerd_types.Mount(type="bind", source=str(self.rootfs), options=["rbind", "ro"])
        request = task.CreateTaskRequest(
            id=container_id, bundle=str(self.path), rootfs=[mount], terminal=call.terminal, **paths
        )
        if call.flaw:
            CREATE_FLAWS[call.flaw](self, request)
        return request

    def no_config(self, _request: task.CreateTaskRequest) -> None:
        (self.path / "config.json").unlink(missing_ok=True)

    def bad_json(self, _request: task.CreateTaskRequest) -> None:
        (self.path / "config.json").write_text('{"ociVersion": ')

    def no_rootfs(self, request: task.CreateTaskRequest) -> None:
        request.rootfs[0].source += "-that-is-not-there"

    def no_bundle(self, request: task.CreateTaskRequest) -> None:
        request.bundle += "-that-is-not-there"

    def bad_stdio(self, request: task.CreateTaskRequest) -> None:
        request.stdout = "gopher://example/1"

    def checkpoint(self, request: task.CreateTaskRequest) -> None:
        request.checkpoint = "/dev/null/checkpoint"


CREATE_FLAWS: Final[dict[str, Callable[[Bundle, task.CreateTaskRequest], None]]] = {
    "no-config": Bundle.no_config,
    "bad-json": Bundle.bad_json,
    "no-rootfs": Bundle.no_rootfs,
    "no-bundle": Bundle.no_bundle,
    "bad-stdio": Bundle.bad_stdio,
    "checkpoint": Bundle.checkpoint,
}
#: What is put in place of an exec's process.
EXEC_FLAWS: Final[dict[str, bytes | None]] = {
    "no-spec": None,
    "bad-json": b"{",
    "not-an-object": b"[]",
    "no-args": json.dumps({**process(Program.SLEEP, terminal=False), "args": []}).encode(),
    "relative-cwd": json.dumps({**process(Program.SLEEP, terminal=False), "cwd": "tmp"}).encode(),
}
#: What is put in place of an update's resources.
UPDATE_FLAWS: Final[dict[str, bytes | None]] = {"no-resources": None, "bad-json": b"{", "not-an-object": b"[]"}


def exec_request(call: Call, container_id: str, exec_id: str, paths: Mapping[str, str]) -> task.ExecProcessRequest:
    value = json.dumps(process(call.program or Program.SLEEP, terminal=call.terminal)).encode()
    flawed = EXEC_FLAWS.get(call.flaw, value) if call.flaw else value
    packed = None if flawed is None else wkt.Any(type_url=PROCESS_URL, value=flawed)
    if call.flaw == "bad-stdio":
        paths = {**paths, "stdout": "gopher://example/1"}
    return task.ExecProcessRequest(id=container_id, exec_id=exec_id, terminal=call.terminal, spec=packed, **paths)


def update_request(call: Call, container_id: str) -> task.UpdateTaskRequest:
    value = json.dumps({"cpu": {"shares": 512}}).encode()
    flawed = UPDATE_FLAWS[call.flaw] if call.flaw else value
    return task.UpdateTaskRequest(
        id=container_id, resources=None if flawed is None else wkt.Any(type_url=RESOURCES_URL, value=flawed)
    )


def request(call: Call, container_id: str, exec_id: str) -> Any:
    """The message of every RPC that needs neither bundle nor streams."""
    ids = {"id": container_id, "exec_id": exec_id}
    match call.rpc:
        case Rpc.KILL:
            return task.KillRequest(**ids, signal=call.signal, all=call.everyone)
        case Rpc.RESIZE_PTY:
            return task.ResizePtyRequest(**ids, width=100, height=40)
        case Rpc.CLOSE_IO:
            return task.CloseIoRequest(**ids, stdin=True)
        case Rpc.UPDATE:
            return update_request(call, container_id)
        case Rpc.SHUTDOWN:
            return task.ShutdownRequest(id=container_id, now=call.now)
        case Rpc.CHECKPOINT:
            return task.CheckpointTaskRequest(id=container_id, path="/dev/null/checkpoint")
    kind = PLAIN[call.rpc]
    return kind(**ids) if "exec_id" in kind.__dataclass_fields__ else kind(id=container_id)


PLAIN: Final[dict[Rpc, Any]] = {
    Rpc.START: task.StartRequest,
    Rpc.DELETE: task.DeleteRequest,
    Rpc.PAUSE: task.PauseRequest,
    Rpc.RESUME: task.ResumeRequest,
    Rpc.STATE: task.StateRequest,
    Rpc.WAIT: task.WaitRequest,
    Rpc.PIDS: task.PidsRequest,
    Rpc.STATS: task.StatsRequest,
    Rpc.CONNECT: task.ConnectRequest,
}
