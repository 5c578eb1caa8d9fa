"""One QEMU with a kernel, an initrd and maybe a root image; what its console and its agent port say.

Both channels are socket pairs whose other ends QEMU inherits: there is no path, and nothing to wait for before talking.
"""

import os
import selectors
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from integration.harness.scale import SCALE, hardware_virtualisation

PORT: Final = "org.kata-shimd.agent.0"
#: The kernel parameters that guest/README.md recommends, for an image on virtio-blk.
PARAMETERS: Final = (
    "tsc=reliable no_timer_check rcupdate.rcu_expedited=1 i8042.direct=1 i8042.dumbkbd=1 i8042.nopnp=1 i8042.noaux=1 "
    "noreplace-smp reboot=k cryptomgr.notests net.ifnames=0 pci=lastbus=0 console=hvc0 quiet panic=1 swiotlb=noforce "
    "sysctl.vm.min_free_kbytes=8192 cgroup_no_v1=all systemd.unified_cgroup_hierarchy=1"
)
ROOT: Final = "root=/dev/vda rootfstype=squashfs ro"


@dataclass(frozen=True, slots=True)
class Boot:
    """What to start. ``memory`` in MiB; ``devices`` are further arguments of QEMU."""

    kernel: Path
    initrd: Path
    rootfs: Path | None = None
    append: str = ""
    memory: int = 512
    devices: tuple[str, ...] = ()


class Machine:
    """Runs inside ``with``; ended, whatever happened, at its end."""

    def __init__(self, boot: Boot) -> None:
        self.boot = boot
        self.said: dict[str, bytearray] = {"console": bytearray(), "port": bytearray()}
        self._sockets: dict[str, socket.socket] = {}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        theirs = {}
        for channel in self.said:
            self._sockets[channel], theirs[channel] = socket.socketpair()
        numbers = {channel: end.fileno() for channel, end in theirs.items()}
        self.began = time.monotonic()
        self._process = subprocess.Popen(
            command(self.boot, numbers), pass_fds=numbers.values(), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        for end in theirs.values():
            end.close()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.communicate()
        for end in self._sockets.values():
            end.close()

    def until(self, channel: str, marker: str, within: float = 10.0) -> str:
        """All that the channel said once ``marker`` is in it. ``within`` seconds, scaled by the accelerator.

        Raises AssertionError with the console's tail when it does not come, or when the machine ends first.
        """
        deadline = time.monotonic() + within * SCALE
        while marker.encode() not in self.said[channel]:
            if not self._hear(deadline):
                raise AssertionError(
                    f"no {marker!r} on the {channel}; the console said:\n{self.text('console')[-2000:]}"
                )
        return self.text(channel)

    def until_end(self, within: float = 10.0) -> str:
        """What the console said by the time the machine ended by itself."""
        deadline = time.monotonic() + within * SCALE
        while self._hear(deadline):
            pass
        assert self._process is not None
        assert self._process.wait(timeout=max(0.1, deadline - time.monotonic())) == 0, self.text("console")[-2000:]
        return self.text("console")

    def send(self, data: bytes) -> None:
        """To the agent's port."""
        self._sockets["port"].sendall(data)

    def text(self, channel: str) -> str:
        return self.said[channel].decode(errors="replace").replace("\r", "")

    @property
    def age(self) -> float:
        """Seconds since QEMU was started."""
        return time.monotonic() - self.began

    def _hear(self, deadline: float) -> bool:
        """Reads what comes next on either channel; False when time is over or QEMU has closed one."""
        with selectors.DefaultSelector() as selector:
            for channel, end in self._sockets.items():
                selector.register(end, selectors.EVENT_READ, channel)
            ready = selector.select(max(0.0, deadline - time.monotonic()))
        heard = {key.data: _receive(self._sockets[key.data]) for key, _ in ready}
        for channel, chunk in heard.items():
            self.said[channel] += chunk
        return bool(heard) and all(heard.values())


def _receive(end: socket.socket) -> bytes:
    """Nothing when QEMU is gone, whether or not it left unread what we sent."""
    try:
        return end.recv(65536)
    except ConnectionResetError:
        return b""


def command(boot: Boot, fds: dict[str, int]) -> list[str]:
    accelerator = "kvm" if hardware_virtualisation() else "tcg"
    rootfs = [] if boot.rootfs is None else [
        "-drive", f"if=none,id=root,file={boot.rootfs},format=raw,readonly=on",
        "-device", "virtio-blk-pci,drive=root",
    ]  # fmt: skip
    parameters = " ".join(filter(None, [PARAMETERS, ROOT if boot.rootfs else "", boot.append]))
    return [
        "qemu-system-x86_64", "-machine", f"q35,accel={accelerator}", "-cpu", "max", "-m", f"{boot.memory}M",
        "-nodefaults", "-no-user-config", "-nographic", "-vga", "none", "--no-reboot",
        "-kernel", os.fspath(boot.kernel), "-initrd", os.fspath(boot.initrd), "-append", parameters,
        "-device", "virtio-serial-pci,id=serial",
        "-chardev", f"socket,id=console,fd={fds['console']}", "-device", "virtconsole,chardev=console",
        "-chardev", f"socket,id=port,fd={fds['port']}", "-device", f"virtserialport,chardev=port,name={PORT}",
        *rootfs, *boot.devices,
    ]  # fmt: skip
