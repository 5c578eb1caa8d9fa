"""containerd as a service of the private systemd's."""

import socket

from integration.harness.containerd import Containerd
from integration.harness.scale import SCALE
from integration.harness.waiting import eventually
from integration.systemd.manager import Systemd

UNIT = "containerd.service"


class ServiceContainerd(Containerd):
    """`start`, `stop` and `restart` are systemd's."""

    def __init__(self, systemd: Systemd) -> None:
        self.host = systemd  # type: ignore[assignment] - as much of a host as containerd needs
        super().__init__(systemd)  # type: ignore[arg-type]
        self._systemd = systemd

    def start(self, **env: str) -> None:
        variables = "".join(f'Environment="{name}={value}"\n' for name, value in (self._systemd.env | env).items())
        text = f"[Service]\nExecStart=/usr/bin/containerd --config {self._config}\nKillMode=process\nDelegate=yes\n{variables}"
        self._systemd.unit(UNIT, f"{text}StandardOutput=append:{self.log}\nStandardError=append:{self.log}\n")
        self.log.touch()
        self.act("start")

    def act(self, verb: str) -> None:
        self._systemd.systemctl(verb, UNIT)
        eventually("containerd's socket", self._answers, within=20 * SCALE)

    def stop(self) -> None:
        self._systemd.systemctl("stop", UNIT)

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.address)) == 0
