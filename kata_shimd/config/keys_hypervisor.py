"""The keys of [hypervisor.qemu] (`kata.md` §8.2) and their annotations (§9.2). Data only."""

from typing import Final

from kata_shimd.config.key import ABSENT, HYPERVISOR, Annotation, Key, Table
from kata_shimd.config.kinds import (
    BOOL,
    GLOBS,
    INT64,
    JSON_STRINGS,
    ONE_PATH,
    PATH,
    REGEXES,
    STR,
    STRINGS,
    TABLES,
    UINT,
    UINT64,
    WORDS,
    between,
    choice,
    go_float,
    go_uint,
    json_strings,
    number,
)
from kata_shimd.config.kinds import Kind as _Kind
from kata_shimd.config.model import ExtraMonitor, MachineType, RootfsType, SharedFs, VirtioFsCache

MIN_MEMORY_MIB: Final = 256
SECCOMP_SANDBOX: Final = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
#: Where distributions put virtiofsd; the first that exists is used when none is configured.
VIRTIOFSD_PATHS: Final = (
    "/usr/libexec/virtiofsd",
    "/usr/lib/qemu/virtiofsd",
    "/usr/lib/virtiofsd",
    "/opt/kata/libexec/virtiofsd",
)


def merge_params(below: str, words: str) -> str:
    """Words added to those that are there; a word takes the place of those of its name."""
    named = {word.split("=", 1)[0] for word in words.split()}
    kept = [word for word in str(below).split() if word.split("=", 1)[0] not in named]
    return " ".join([*kept, *words.split()])


def append(below: list[str], extra: list[str]) -> list[str]:
    """Appended to what is there."""
    return [*below, *extra]


def positive(name: str) -> Annotation:
    return Annotation(name=HYPERVISOR + name, text=go_uint, positive=True)


def under(name: str, globs: str) -> Annotation:
    return Annotation(name=HYPERVISOR + name, text=str, globs=globs)


FLOAT_VCPUS: Final = _Kind("number", number(-1_000_000, 1_000_000), go_float)
NAME: Final = STR
Q: Final = Table("hypervisor.qemu", HYPERVISOR)

PROGRAM: Final[tuple[Key, ...]] = (
    Q.acts(
        "path",
        PATH,
        "/usr/bin/qemu-system-x86_64",
        "the QEMU program",
        note=under("path", "valid_hypervisor_paths"),
    ),
    Q.acts(
        "valid_hypervisor_paths",
        GLOBS,
        [],
        "globs that the annotation for `path` may match, besides `path` itself",
        kata=["/usr/bin/qemu-system-x86_64"],
        inside=True,
    ),
    Q.acts(
        "machine_type",
        choice(MachineType, known=("virt", "pseries", "s390-ccw-virtio", "microvm")),
        "q35",
        "QEMU's machine; there is one choice, so taking it is all there is to do",
        note="machine_type",
        inside=True,
    ),
    Q.acts("machine_accelerators", STR, "", "words added to `-machine`, comma separated", note="machine_accelerators"),
    Q.acts("cpu_features", STR, "pmu=off", "features added after the CPU model in `-cpu`", note="cpu_features"),
    Q.acts(
        "seccompsandbox",
        STR,
        SECCOMP_SANDBOX,
        'QEMU\'s own system call filter (`-sandbox`). On by default here, unlike Kata; an empty string means our default, "off" '
        "turns it off",
        kata="",
    ),
    Q.acts(
        "entropy_source",
        PATH,
        "/dev/urandom",
        "host device behind the guest's virtio-rng",
        note=under("entropy_source", "valid_entropy_sources"),
    ),
    Q.acts(
        "valid_entropy_sources",
        GLOBS,
        ["/dev/urandom", "/dev/random", ""],
        "globs that the annotation for `entropy_source` may match",
        inside=True,
    ),
    Q.acts(
        "enable_annotations",
        REGEXES,
        ["enable_iommu", "kernel_params", "kernel_verity_params"],
        "regular expressions of the hypervisor annotations a pod may use; each must match the whole name, see decision 0004",
        inside=True,
    ),
    Q.acts("enable_debug", BOOL, False, "verbose guest kernel, named QEMU threads, debug log of virtiofsd"),
    Q.acts(
        "extra_monitor_socket", choice(ExtraMonitor), "", "a second monitor for humans; used only with `enable_debug`"
    ),
    Q.held("rootless", BOOL, False, "run QEMU as a user without privileges", note="rootless"),
    Q.held("disable_selinux", BOOL, False, "do not give QEMU an SELinux label"),
    Q.held("disable_seccomp", BOOL, False, "system call filter of other VMMs; QEMU has `seccompsandbox`"),
    Q.held("disable_nesting_checks", BOOL, False, "do not fall back to legacy virtio under nested virtualisation"),
    Q.held("guest_hook_path", STR, "", "directory of OCI hooks inside the guest", note="guest_hook_path"),
    Q.held("guest_memory_dump_path", STR, "", "where to keep the guest's memory after a panic"),
    Q.held("guest_memory_dump_paging", BOOL, False, "dump with the guest's page tables"),
    Q.held("hypervisor_loglevel", UINT, 1, "log level of other VMMs"),
)

GUEST: Final[tuple[Key, ...]] = (
    Q.acts(
        "kernel",
        PATH,
        ABSENT,
        "guest kernel; given together with `image`. Neither given: kernel, initrd and image of `shimd.guest_dir`",
        kata="/usr/share/kata-containers/vmlinux.container",
        code="/usr/share/kata-containers/vmlinuz.container",
        note="kernel",
    ),
    Q.acts(
        "image",
        PATH,
        ABSENT,
        "guest root file system, attached read-only by virtio-blk; given together with `kernel`",
        kata="/usr/share/kata-containers/kata-containers.img",
        note="image",
    ),
    Q.held(
        "initrd",
        STR,
        "",
        "guest booted from an initrd alone; not supported: containers need a root that can be pivoted",
        kata=ABSENT,
        note="initrd",
    ),
    Q.acts(
        "rootfs_type",
        choice(RootfsType),
        ABSENT,
        "file system of `image`; squashfs for the guest of `shimd.guest_dir`, else ext4",
        kata="ext4",
    ),
    Q.acts(
        "kernel_params",
        WORDS,
        "cgroup_no_v1=all systemd.unified_cgroup_hierarchy=1",
        "appended to the guest's kernel command line, last",
        note=Annotation(name=HYPERVISOR + "kernel_params", text=str, combine=merge_params),
    ),
    Q.held("kernel_verity_params", STR, "", "dm-verity of the image", note="kernel_verity_params"),
    Q.held("guest_extension_images", TABLES, [], "further read-only images", kata=ABSENT),
    Q.held(
        "disable_image_nvdimm",
        BOOL,
        False,
        "attach the image by virtio-blk, which we always do",
        accepts=(True,),
        note="disable_image_nvdimm",
    ),
    Q.held("firmware", STR, "", "firmware for `-bios`", note="firmware"),
    Q.held("firmware_volume", STR, "", "variables of a split firmware", note="firmware_volume"),
    Q.held("pflashes", STRINGS, [], "flash images (arm64)"),
    Q.held("use_legacy_serial", BOOL, False, "console on ttyS0 instead of virtio", note="use_legacy_serial"),
    Q.held("disable_guest_selinux", BOOL, True, "no SELinux inside the guest"),
)

SIZE: Final[tuple[Key, ...]] = (
    Q.acts(
        "default_vcpus",
        FLOAT_VCPUS,
        1,
        "vCPUs at boot, rounded up; 0 is 1; negative or too many: all of the host's",
        note="default_vcpus",
        inside=True,
    ),
    Q.acts(
        "default_maxvcpus",
        UINT,
        0,
        "most vCPUs a VM may grow to; 0: as many as the host has",
        note="default_max_vcpus",
        inside=True,
    ),
    Q.acts(
        "default_memory", between(MIN_MEMORY_MIB, unit="MiB"), 2048, "memory at boot", unit="mib", note="default_memory"
    ),
    Q.acts(
        "default_maxmemory",
        UINT64,
        0,
        "most memory (MiB) a VM may grow to; 0: as much as the host has",
        unit="mib",
        inside=True,
    ),
    Q.acts("memory_slots", between(0, 256), 10, "how many times memory can be added", note=positive("memory_slots")),
    Q.held("memory_offset", UINT64, 0, "extra address space (MiB) for nvdimm", note=positive("memory_offset")),
    Q.held("default_bridges", UINT, 1, "PCI bridges for hot-plug"),
    Q.held("enable_virtio_mem", BOOL, False, "virtio-mem instead of pc-dimm", note="enable_virtio_mem"),
    Q.held("enable_mem_prealloc", BOOL, False, "take all memory at boot", note="enable_mem_prealloc"),
    Q.held("reclaim_guest_freed_memory", BOOL, False, "give free guest memory back", note="reclaim_guest_freed_memory"),
    Q.held("enable_hugepages", BOOL, False, "guest memory in huge pages", note="enable_hugepages"),
    Q.held("enable_guest_swap", BOOL, False, "swap inside the guest", note="enable_guest_swap"),
    Q.held("enable_numa", BOOL, False, "several NUMA nodes in the guest"),
    Q.held("numa_mapping", STRINGS, [], "host nodes of each guest node", note="numa_mapping"),
)

FILES: Final[tuple[Key, ...]] = (
    Q.acts(
        "shared_fs",
        choice(SharedFs, known=("virtio-9p", "virtio-fs-nydus", "none")),
        "virtio-fs",
        "how the guest sees host files; there is one choice",
        note="shared_fs",
        inside=True,
    ),
    Q.acts(
        "virtio_fs_daemon",
        ONE_PATH,
        ABSENT,
        "the virtiofsd program; not given: the first that exists of "
        + ", ".join(f"`{path}`" for path in VIRTIOFSD_PATHS),
        kata="/usr/libexec/virtiofsd",
        note=under("virtio_fs_daemon", "valid_virtio_fs_daemon_paths"),
    ),
    Q.acts(
        "valid_virtio_fs_daemon_paths",
        GLOBS,
        [],
        "globs that the annotation for `virtio_fs_daemon` may match, besides the daemon itself",
        kata=["/usr/libexec/virtiofsd"],
        inside=True,
    ),
    Q.acts(
        "virtio_fs_cache",
        choice(VirtioFsCache),
        "auto",
        "cache mode of virtiofsd",
        code="never",
        note="virtio_fs_cache",
    ),
    Q.acts("virtio_fs_queue_size", between(2, 1024, power_of_two=True), 1024, "length of the virtio-fs request queue"),
    Q.acts(
        "virtio_fs_extra_args",
        JSON_STRINGS,
        [],
        "appended to virtiofsd's arguments as they are; none by default, for the options of the C and the Rust daemon differ",
        kata=["--thread-pool-size=1", "--announce-submounts"],
        note=Annotation(name=HYPERVISOR + "virtio_fs_extra_args", text=json_strings, combine=append),
    ),
    Q.held("virtio_fs_cache_size", UINT, 0, "DAX window in MiB", note="virtio_fs_cache_size"),
    Q.held("msize_9p", UINT, 8192, "message size of 9p", note=positive("msize_9p")),
    Q.held(
        "disable_block_device_use",
        BOOL,
        True,
        "do not hot-plug block devices, which we never do",
        code=False,
        note="disable_block_device_use",
    ),
    Q.held("block_device_driver", STR, "virtio-scsi", "how block devices are attached", note="block_device_driver"),
    Q.held("block_device_aio", STR, "io_uring", "asynchronous I/O of block devices", note="block_device_aio"),
    Q.held("block_device_cache_set", BOOL, False, "use the two keys below", note="block_device_cache_set"),
    Q.held("block_device_cache_direct", BOOL, False, "bypass the host's page cache", note="block_device_cache_direct"),
    Q.held("block_device_cache_noflush", BOOL, False, "ignore flushes", note="block_device_cache_noflush"),
    Q.held("block_device_logical_sector_size", UINT, 0, "logical sector size", note="blk_logical_sector_size"),
    Q.held("block_device_physical_sector_size", UINT, 0, "physical sector size", note="blk_physical_sector_size"),
    Q.held("enable_iothreads", BOOL, False, "an I/O thread for block devices", note="enable_iothreads"),
    Q.held("indep_iothreads", between(0, 50), 0, "independent I/O threads", note=positive("indep_iothreads")),
    Q.held("enable_vhost_user_store", BOOL, False, "vhost-user block devices", note="enable_vhost_user_store"),
    Q.held(
        "vhost_user_store_path",
        STR,
        "/var/run/kata-containers/vhost-user",
        "their directory",
        note=under("vhost_user_store_path", "valid_vhost_user_store_paths"),
    ),
    Q.held("valid_vhost_user_store_paths", GLOBS, ["/var/run/kata-containers/vhost-user"], "globs for it"),
    Q.held(
        "vhost_user_reconnect_timeout_sec",
        UINT,
        0,
        "wait between attempts to reconnect",
        note="vhost_user_reconnect_timeout_sec",
    ),
)

DEVICES: Final[tuple[Key, ...]] = (
    Q.acts("pcie_root_port", between(0, 16), 0, "additional PCIe root ports", note=positive("pcie_root_port")),
    Q.held("pcie_switch_port", UINT, 0, "PCIe switch ports", kata=ABSENT, note=positive("pcie_switch_port")),
    Q.held("hot_plug_vfio", STR, "no-port", "where VFIO devices are hot-plugged", note="hot_plug_vfio", accepts=("",)),
    Q.held("cold_plug_vfio", STR, "no-port", "where VFIO devices are at boot", note="cold_plug_vfio", accepts=("",)),
    Q.held("enable_iommu", BOOL, False, "an IOMMU in the guest", note="enable_iommu"),
    Q.held("enable_iommu_platform", BOOL, False, "virtio behind the IOMMU", note="enable_iommu_platform"),
    Q.acts(
        "disable_vhost_net",
        BOOL,
        False,
        "network in QEMU instead of the host's kernel",
        note="disable_vhost_net",
    ),
    Q.held("rx_rate_limiter_max_rate", UINT64, 0, "bits a second into the VM", note="rx_rate_limiter_max_rate"),
    Q.held("tx_rate_limiter_max_rate", UINT64, 0, "bits a second out of the VM", note="tx_rate_limiter_max_rate"),
)

CONFIDENTIAL: Final[tuple[Key, ...]] = (
    Q.held("confidential_guest", BOOL, False, "a confidential guest"),
    Q.held("sev_snp_guest", BOOL, False, "SNP rather than SEV"),
    Q.held("snp_id_block", STR, "", "SNP launch parameter", kata=ABSENT),
    Q.held("snp_id_auth", STR, "", "SNP launch parameter", kata=ABSENT),
    Q.held("snp_guest_policy", UINT64, 0, "SNP launch parameter", kata=ABSENT),
    Q.held("tdx_quote_generation_service_socket_port", UINT, 0, "vsock port of the quote service", accepts=(4050,)),
    Q.held("measurement_algo", STR, "sha512", "digest of the init data"),
)


def _rate_limiter(name: str) -> Key:
    return Q.held(name, INT64, 0, "rate limiter of other VMMs")


OTHER_VMMS: Final[tuple[Key, ...]] = (
    Q.held(
        "jailer_path",
        STR,
        "/usr/bin/jailer",
        "Firecracker's jailer",
        note=under("jailer_path", "valid_jailer_paths"),
        accepts=("",),
    ),
    Q.held("valid_jailer_paths", GLOBS, ["/usr/bin/jailer"], "globs for it", accepts=([],)),
    *(
        _rate_limiter(f"{kind}_rate_limiter_{what}_{how}")
        for kind in ("disk", "net")
        for what in ("bw", "ops")
        for how in ("max_rate", "one_time_burst")
    ),
    Q.held("remote_hypervisor_socket", STR, "/run/peerpod/hypervisor.sock", "socket of a remote hypervisor"),
    Q.held("remote_hypervisor_timeout", UINT, 600, "seconds to wait for it"),
)

KEYS: Final[tuple[Key, ...]] = (*PROGRAM, *GUEST, *SIZE, *FILES, *DEVICES, *CONFIDENTIAL, *OTHER_VMMS)
