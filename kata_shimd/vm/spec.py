"""What a virtual machine is to be: frozen values, complete before anything is made.

The composition root makes a `VmSpec` from the configuration. File descriptors that exist only at boot are `Wires`.
"""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from kata_shimd.pod.network import Nic
from kata_shimd.vm.accel import Accelerator

AGENT_PORT_NAME: Final = "org.kata-shimd.agent.0"
SHARE_TAG: Final = "kataShared"
SANDBOX: Final = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
#: Empty PCIe ports for devices plugged in later. Each costs about 20 ms of CPU at boot under TCG (medians of five boots up to the
#: agent's answer: 2.44 s of CPU without any, 2.52 with 4, 2.76 with 16).
ROOT_PORTS: Final = 4


class Transport(StrEnum):
    """How the agent is reached."""

    VIRTIO_SERIAL = "virtio-serial"
    VSOCK = "vsock"


class CacheMode(StrEnum):
    """What the guest may cache of the shared directory."""

    NEVER = "never"
    METADATA = "metadata"
    AUTO = "auto"
    ALWAYS = "always"


class ExtraMonitor(StrEnum):
    """A further monitor, for people, at POD/extra-monitor.sock."""

    NONE = ""
    HMP = "hmp"
    QMP = "qmp"
    QMP_PRETTY = "qmp-pretty"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareSpec:
    """The shared directory: which virtiofsd (the first candidate that exists) and how it serves."""

    programs: tuple[Path, ...]
    cache: CacheMode = CacheMode.AUTO
    queue_size: int = 1024
    threads: int = 1
    xattr: bool = False
    extra_args: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class VmSpec:
    """One VM. Memory in MiB.

    ``image_partition`` 0 means that the image is the file system itself. ``initrd`` is None for an image that boots by
    systemd, as Kata's. ``incoming`` is a clone of a template: it waits for its state, and its shared directory is plugged in.
    """

    name: str
    uuid: str
    qemu: Path
    accelerator: Accelerator
    kernel: Path
    image: Path
    share: ShareSpec
    initrd: Path | None = None
    image_fstype: str = "squashfs"
    image_partition: int = 0
    kernel_params: tuple[str, ...] = ()
    vcpus: int = 1
    max_vcpus: int = 1
    memory_mib: int = 2048
    max_memory_mib: int = 0
    memory_slots: int = 10
    machine_options: str = ""
    cpu_features: str = ""
    sandbox: str = SANDBOX
    transport: Transport = Transport.VIRTIO_SERIAL
    root_ports: int = ROOT_PORTS
    entropy: Path = Path("/dev/urandom")
    nics: tuple[Nic, ...] = ()
    extra_monitor: ExtraMonitor = ExtraMonitor.NONE
    paused: bool = False
    incoming: bool = False
    debug: bool = False
    console_log_bytes: int = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Vsock:
    """A context id that is ours as long as the vhost-vsock fd is open."""

    cid: int
    vhost_fd: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Wires:
    """The descriptors QEMU is born with: listening sockets, but ``share``, which is connected to virtiofsd (none: no shared
    directory), and ``memory``, a file of guest RAM in place of one that QEMU makes.
    """

    monitor: int
    debug_monitor: int
    console: int
    share: int | None = None
    memory: int | None = None
    agent: int | None = None
    vsock: Vsock | None = None
    extra_monitor: int | None = None

    def fds(self) -> tuple[int, ...]:
        vhost = self.vsock.vhost_fd if self.vsock else None
        every = (
            self.monitor, self.debug_monitor, self.console, self.share, self.memory, self.agent, vhost,
            self.extra_monitor,
        )  # fmt: skip
        return tuple(fd for fd in every if fd is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Budgets:
    """Deadlines in seconds, already scaled for the accelerator."""

    qmp: float = 10.0
    dial: float = 45.0
    hello_interval: float = 0.25
    hotplug: float = 10.0
    quit: float = 2.0
    term: float = 2.0
    #: How long a process in the kernel's hands may take to die of SIGKILL.
    killed: float = 10.0
    #: virtiofsd ends with QEMU, and QEMU's last events are in a socket's buffer when it does: so long is waited for the other.
    last_words: float = 1.0
    virtiofsd: float = 10.0
    #: How long the guest of a clone may take to answer before the pod is booted instead.
    clone: float = 3.0
