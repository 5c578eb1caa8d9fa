"""Debian's containerd, started privately inside a `Host`: own root, state and sockets, no CRI, log kept."""

import socket
import stat
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from integration.harness import process
from integration.harness.host import Host
from integration.harness.scale import SCALE
from integration.harness.waiting import eventually

#: Not wanted here: they look for devices, write to /opt, or pull in what no test uses.
DISABLED: Final = (
    "io.containerd.grpc.v1.cri",
    "io.containerd.internal.v1.opt",
    "io.containerd.internal.v1.tracing",
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs",
    "io.containerd.tracing.processor.v1.otlp",
)

_CONFIG: Final = """\
version = 2
root = "{root}/root"
state = "{root}/state"
disabled_plugins = [{disabled}]
[grpc]
  address = "{address}"
[debug]
  level = "{level}"
"""


class Containerd:
    """One containerd process; `start` and `stop` may be repeated, its root and state stay."""

    #: The daemon and its client; another version's have a path.
    program: str | Path = "containerd"
    client: str | Path = "ctr"

    def __init__(self, host: Host, *, level: str = "debug") -> None:
        self.host = host
        self.home = Path(tempfile.mkdtemp(prefix="c", dir=host.root))
        self.address = self.home / "c.sock"
        self.log = self.home / "log"
        self._config = self.home / "config.toml"
        self._config.write_text(self.configuration(level))
        self._child: subprocess.Popen[bytes] | None = None

    def configuration(self, level: str) -> str:
        """The text of config.toml."""
        disabled = ", ".join(f'"{name}"' for name in DISABLED)
        return _CONFIG.format(root=self.home, address=self.address, disabled=disabled, level=level)

    @property
    def root(self) -> Path:
        return self.home / "root"

    @property
    def state(self) -> Path:
        return self.home / "state"

    @property
    def pid(self) -> int:
        assert self._child is not None, "containerd is not running"
        return self._child.pid

    def bundle(self, namespace: str, container_id: str) -> Path:
        return self.state / "io.containerd.runtime.v2.task" / namespace / container_id

    def start(self, **env: str) -> None:
        """Start and wait until it answers on its socket. ``env`` is added to its environment, so to every launcher's."""
        self.address.unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self._child = self.host.spawn([self.program, "--config", self._config], env=env, stdout=log, stderr=log)
        eventually("containerd's socket", self._answers, within=20 * SCALE)

    def stop(self) -> None:
        """End it politely; shims stay, as they do in production."""
        if self._child is not None:
            process.finish(self._child, within=20.0)
            self._child = None
            # It takes away the one of these that clients use, and forgets the other.
            self.address.with_name(f"{self.address.name}.ttrpc").unlink(missing_ok=True)

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        assert self._child is not None
        self._child.kill()
        process.finish(self._child)
        self._child = None

    def log_from(self, offset: int) -> str:
        """The log from a byte offset on."""
        with self.log.open("rb") as log:
            log.seek(offset)
            return log.read().decode(errors="replace")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _answers(self) -> bool:
        assert self._child is not None
        if self._child.poll() is not None:
            raise RuntimeError(f"containerd ended with {self._child.returncode}: {self.log_from(0)[-2000:]}")
        try:
            if not stat.S_ISSOCK(self.address.stat().st_mode):
                return False
        except FileNotFoundError:
            return False
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.address)) == 0
