"""Launcher, keeper and daemon on a stage of their own: a guest and a containerd that are threads of the test."""

import json
import os
import shutil
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final

from integration.conftest import PREFIX
from integration.harness.pods import BOOTED, Pod
from integration.harness.sandbox import SANDBOX, TYPE
from integration.keeper.verbs.guest import Guest, reply
from integration.launcher.shim import Shim
from kata_shimd import wire
from kata_shimd.api import forward
from kata_shimd.ttrpc.envelope import decode_request
from kata_shimd.ttrpc.frames import FrameDecoder

STANDIN: Final = Path(__file__).with_name("standin.py")
#: The daemon's record in the ledger: the launcher's second.
DAEMON: Final = 2


class Events:
    """containerd's receiver of events; ``topics`` in the order they came."""

    def __init__(self, path: Path) -> None:
        self.topics: list[str] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        decoder = FrameDecoder()
        with sock, suppress(ConnectionError):
            while data := sock.recv(1 << 16):
                for frame in decoder.feed(data):
                    request = wire.decode(forward.ForwardRequest, decode_request(frame.data).payload)
                    assert request.envelope is not None
                    self.topics.append(request.envelope.topic)
                    reply(sock, frame.stream)


class Stage:
    """Launcher, bundle, FIFOs and guest of one life, in a directory with a short name: sockets live in it."""

    KEEPER = "launcher"

    def __init__(self, root: Path, launcher: Path | None = None) -> None:
        """With an installed ``launcher`` the machine is a real one."""
        self.root = root
        self.shim = self.make_shim(launcher or with_standin(root / "bin"))
        self.guest = Guest(root / "guest")
        self.events = Events(root / "events")
        self.die = root / "die"
        config = root / "configuration.toml"
        config.write_text(f'{BOOTED}[shimd]\nkeeper = "{self.KEEPER}"\nkeeper_deaths = 1000\n')
        self.env = {
            "TTRPC_ADDRESS": str(root / "events"),
            "KATA_TEST_GUEST": str(root / "guest"),
            "KATA_SHIMD_DIE_FILE": str(self.die),
            "KATA_CONF_FILE": str(config),
            "PYTHONPATH": str(Path(__file__).parents[3]),
        }
        bundle = self.bundle = self._bundle("pod", {})
        os.mkfifo(bundle / "log")
        self.log = os.open(bundle / "log", os.O_RDWR | os.O_NONBLOCK)

    def make_shim(self, launcher: Path) -> Shim:
        return Shim(launcher, self.root)

    @property
    def pod(self) -> Pod:
        return Pod(self.shim.run_dir, self.shim.pod("pod").name)

    def fifos(self, name: str) -> dict[str, str]:
        paths = {stream: str(self.root / f"{name}-{stream}") for stream in ("stdin", "stdout", "stderr")}
        for path in paths.values():
            os.mkfifo(path)
        return paths

    def _bundle(self, name: str, annotations: dict[str, str]) -> Path:
        bundle = self.shim.bundle(name)
        (bundle / "rootfs").mkdir()
        config = {
            "ociVersion": "1.1.0",
            "process": {"args": ["x"], "cwd": "/"},
            "root": {"path": "rootfs"},
            "linux": {"namespaces": [{"type": "network"}]},
            "annotations": annotations,
        }
        (bundle / "config.json").write_text(json.dumps(config))
        return bundle

    def further(self, name: str) -> Path:
        """The bundle of one more container of the pod."""
        return self._bundle(name, {TYPE: "container", SANDBOX: "pod"})

    def arm(self, k: int) -> None:
        """The daemon that lives now dies at its k-th durable step."""
        beside = self.die.with_suffix(".new")
        beside.write_text(str(k))
        beside.rename(self.die)

    def configure(self, old: str, new: str) -> None:
        """For daemons to come."""
        config = self.root / "configuration.toml"
        text = config.read_text()
        assert old in text
        config.write_text(text.replace(old, new))

    def deaths(self) -> int:
        lines = map(json.loads, (self.shim.pod("pod") / "ledger").read_text().splitlines())
        return sum(line["op"] == "made" and line["n"] == DAEMON for line in lines) - 1

    def booted(self) -> bool:
        return '"booted":true' in (self.shim.pod("pod") / "state").read_text()

    def niceness(self) -> list[int]:
        """Of each daemon that was no fork of another's, when it began."""
        return [int(line) for line in Path(f"{self.root}/guest-nice").read_text().split()]

    def close(self) -> None:
        self.guest.close()
        self.events.close()
        os.close(self.log)


def with_standin(bin_dir: Path) -> Path:
    """A launcher whose daemon has a machine that is not one."""
    bin_dir.mkdir()
    launcher = Path(shutil.copy2(PREFIX / "bin/containerd-shim-kata-v2", bin_dir))
    python = bin_dir / "python3"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {STANDIN} "$@"\n')
    python.chmod(0o755)
    return launcher
