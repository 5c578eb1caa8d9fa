"""The configuration as the rest of the program sees it: one frozen, total tree of typed values.

Owns the types, nothing else: no file, no default (those are rows of ``keys.py``), no look at the host. Sizes and times carry
their unit in the name. Must never happen: a field that is optional because nobody decided, or a value that is a bare string
where a finite set exists. The names are Kata's keys (`kata.md` §8), plus the unit.
"""

import math
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Final


class Accelerator(StrEnum):
    """What runs the guest's instructions, once chosen."""

    KVM = "kvm"
    TCG = "tcg"


class AcceleratorSetting(StrEnum):
    AUTO = "auto"
    KVM = "kvm"
    TCG = "tcg"


class EventLoop(StrEnum):
    AUTO = "auto"
    UVLOOP = "uvloop"
    ASYNCIO = "asyncio"


class Keeping(StrEnum):
    OFF = "off"
    AUTO = "auto"
    LAUNCHER = "launcher"
    SYSTEMD = "systemd"


class AgentTransport(StrEnum):
    AUTO = "auto"
    VIRTIO_SERIAL = "virtio-serial"
    VSOCK = "vsock"


class AttachSetting(StrEnum):
    """Whether root may have the daemon's interpreter: once ``kata-shimd attach`` has sent its signal, from the start, or never."""

    SIGNAL = "signal"
    ALWAYS = "always"
    NEVER = "never"


class MachineType(StrEnum):
    Q35 = "q35"


class RootfsType(StrEnum):
    EXT4 = "ext4"
    XFS = "xfs"
    EROFS = "erofs"
    SQUASHFS = "squashfs"


class SharedFs(StrEnum):
    VIRTIO_FS = "virtio-fs"


class VirtioFsCache(StrEnum):
    NEVER = "never"
    AUTO = "auto"
    ALWAYS = "always"
    METADATA = "metadata"


class ExtraMonitor(StrEnum):
    NONE = ""
    HMP = "hmp"
    QMP = "qmp"
    QMP_PRETTY = "qmp-pretty"


class InternetworkingModel(StrEnum):
    TCFILTER = "tcfilter"
    MACVTAP = "macvtap"
    NONE = "none"


#: How much slower everything in the guest may be under each accelerator. The only place with such a factor: production
#: deadlines and the deadlines of tests are both multiplied by it.
TIME_SCALE: Final = {Accelerator.KVM: 1.0, Accelerator.TCG: 4.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Every deadline of the daemon, in seconds. As configured these hold for KVM; use ``scaled`` for the real accelerator."""

    dial_agent: float
    hello_interval: float
    health: float
    health_interval: float
    create_sandbox: float
    create_container: float
    agent_rpc: float
    kill: float
    qmp: float
    clone: float
    virtiofsd: float
    hotplug: float
    stop: float
    stop_agent: float
    stop_quit: float
    stop_term: float
    stop_kill: float
    last_words: float
    teardown_step: float
    drain: float
    reader_stall: float
    output_stall: float
    execs_end: float
    publish_event: float
    create_wait: float
    abandoned_wait: float

    def scaled(self, accelerator: Accelerator) -> "Timeouts":
        """The same deadlines for this accelerator."""
        return self.times(TIME_SCALE[accelerator])

    def times(self, factor: float) -> "Timeouts":
        """Every deadline multiplied by ``factor``."""
        return replace(self, **{field.name: getattr(self, field.name) * factor for field in fields(self)})


@dataclass(frozen=True, slots=True, kw_only=True)
class HypervisorConfig:
    """[hypervisor.qemu]. ``initrd`` is set exactly when the guest is the one in ``guest_dir``."""

    path: Path
    valid_hypervisor_paths: tuple[str, ...]
    kernel: Path
    image: Path
    initrd: Path | None
    rootfs_type: RootfsType
    machine_type: MachineType
    machine_accelerators: str
    cpu_features: str
    kernel_params: tuple[str, ...]
    enable_annotations: tuple[str, ...]
    default_vcpus: float
    default_maxvcpus: int
    default_memory_mib: int
    default_maxmemory_mib: int
    memory_slots: int
    shared_fs: SharedFs
    virtio_fs_daemon: tuple[Path, ...]
    valid_virtio_fs_daemon_paths: tuple[str, ...]
    virtio_fs_cache: VirtioFsCache
    virtio_fs_queue_size: int
    virtio_fs_extra_args: tuple[str, ...]
    enable_debug: bool
    extra_monitor_socket: ExtraMonitor
    pcie_root_port: int
    disable_vhost_net: bool
    entropy_source: Path
    valid_entropy_sources: tuple[str, ...]
    seccompsandbox: str

    def boot_vcpus(self, host_cpus: int) -> int:
        """vCPUs at boot: rounded up; 0 means 1, a negative number or more than the host has means all of the host's."""
        wanted = math.ceil(self.default_vcpus) if self.default_vcpus else 1
        return wanted if 0 < wanted <= host_cpus else host_cpus

    def max_vcpus(self, host_cpus: int) -> int:
        """The most vCPUs the VM can ever have, never fewer than at boot."""
        limit = min(self.default_maxvcpus or host_cpus, host_cpus)
        return max(limit, self.boot_vcpus(host_cpus))

    def max_memory_mib(self, host_memory_mib: int) -> int:
        """The most memory the VM can ever have, never less than at boot."""
        limit = min(self.default_maxmemory_mib or host_memory_mib, host_memory_mib)
        return max(limit, self.default_memory_mib)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    """[agent.kata]. ``launch_process_timeout_s`` None leaves the agent its own default."""

    enable_debug: bool
    kernel_modules: tuple[str, ...]
    dial_timeout_s: float
    launch_process_timeout_s: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeConfig:
    """[runtime]. ``sandbox_bind_mounts`` are host paths that every pod sees read-only."""

    enable_debug: bool
    internetworking_model: InternetworkingModel
    disable_guest_seccomp: bool
    disable_new_netns: bool
    sandbox_cgroup_only: bool
    static_sandbox_resource_mgmt: bool
    sandbox_bind_mounts: tuple[Path, ...]
    create_container_timeout_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FactoryConfig:
    """[factory]."""

    enable_template: bool
    template_path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class ShimdConfig:
    """[shimd], which Kata does not have. ``time_scale`` 0 means the accelerator's own factor."""

    strict: bool
    accelerator: AcceleratorSetting
    event_loop: EventLoop
    agent_transport: AgentTransport
    keeper: Keeping
    keeper_spare: bool
    keeper_deaths: int
    keeper_seconds: int
    attach: AttachSetting
    guest_dir: Path
    time_scale: float
    console_log_size_kib: int
    journal_size_kib: int
    journal_keep: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The whole configuration of one pod."""

    hypervisor: HypervisorConfig
    agent: AgentConfig
    runtime: RuntimeConfig
    factory: FactoryConfig
    shimd: ShimdConfig
    timeouts: Timeouts

    def deadlines(self, accelerator: Accelerator) -> Timeouts:
        """The deadlines to use under this accelerator; an explicit ``time_scale`` wins over the accelerator's."""
        return self.timeouts.times(self.shimd.time_scale or TIME_SCALE[accelerator])
