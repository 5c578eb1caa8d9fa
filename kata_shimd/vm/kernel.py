"""The kernel command line (`kata.md` §4.3): base, root, console, sizes, the user's own last."""

from typing import Final

from kata_shimd.vm.spec import VmSpec

_BASE: Final = (
    "tsc=reliable",
    "no_timer_check",
    "rcupdate.rcu_expedited=1",
    "i8042.direct=1",
    "i8042.dumbkbd=1",
    "i8042.nopnp=1",
    "i8042.noaux=1",
    "noreplace-smp",
    "reboot=k",
    "cryptomgr.notests",
    "net.ifnames=0",
    "pci=lastbus=0",
    # With room for 4 GiB and more the kernel would set 64 MiB aside for devices that cannot address it; ours can.
    "swiotlb=noforce",
    # Transparent huge pages would hold 45 MiB of 2 GiB back, for everybody's pods to pay and no container to use.
    "sysctl.vm.min_free_kbytes=8192",
)

#: Speaks from the first instruction, and falls silent when hvc0 takes over: a kernel that cannot load its drivers is heard.
_CONSOLE: Final = ("earlycon=uart8250,io,0x3f8,115200", "console=hvc0")
_QUIET: Final = ("quiet", "systemd.show_status=false")
_VERBOSE: Final = ("debug", "systemd.show_status=true", "systemd.log_level=debug")
_SYSTEMD: Final = (
    "systemd.unit=kata-containers.target",
    "systemd.mask=systemd-networkd.service",
    "systemd.mask=systemd-networkd.socket",
)
_ROOT_FLAGS: Final = {"ext4": ("rootflags=data=ordered,errors=remount-ro",)}


def command_line(spec: VmSpec) -> str:
    """Later words override earlier ones in the kernel, so the user's come last."""
    partition = str(spec.image_partition) if spec.image_partition else ""
    words = (
        *_BASE,
        f"root=/dev/vda{partition}",
        *_ROOT_FLAGS.get(spec.image_fstype, ()),
        "ro",
        f"rootfstype={spec.image_fstype}",
        # Before the console: a kernel told to be quiet only later has spoken its first screen by then.
        *(_VERBOSE if spec.debug else _QUIET),
        *_CONSOLE,
        # What a bug of the kernel has killed half-way never ends and cannot be killed; a VM that ends is told of at once.
        "oops=panic",
        "panic=1",
        f"nr_cpus={spec.max_vcpus}",
        "selinux=0",
        *(() if spec.initrd else _SYSTEMD),
        *spec.kernel_params,
    )
    return " ".join(words)
