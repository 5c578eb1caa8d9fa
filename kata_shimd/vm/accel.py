"""Which accelerator runs the guest, and why.

`auto` takes KVM only when it can work: /dev/kvm opens, the CPU has the extension that a guest kernel needs, and a VM can be
made. The extension matters on hosts that offer KVM without hardware support, where a stock kernel hangs right after firmware. The
VM comes last, and once in a process and its forks: to take it down again costs milliseconds.
"""

import fcntl
import os
import platform
import stat
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Final

from kata_shimd.errors import HostFailed

KVM_DEVICE: Final = Path("/dev/kvm")
CPUINFO: Final = Path("/proc/cpuinfo")
#: linux/kvm.h: _IO(0xAE, 0x01), argument 0 is the default machine type.
KVM_CREATE_VM: Final = 0xAE01

#: /proc/cpuinfo flags, one of which a CPU must have; an architecture that is not listed has KVM or has no /dev/kvm.
_VIRTUALISATION_FLAGS: Final = {"x86_64": frozenset({"vmx", "svm"})}


class Accelerator(StrEnum):
    KVM = "kvm"
    TCG = "tcg"


class Setting(StrEnum):
    AUTO = "auto"
    KVM = "kvm"
    TCG = "tcg"


@dataclass(frozen=True, slots=True)
class Choice:
    """The accelerator, which is also the name of its time scale, and a phrase that says why."""

    accelerator: Accelerator
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """Where `choose` looks; tests give other places."""

    machine: str = platform.machine()
    device: Path = KVM_DEVICE
    cpuinfo: Path = CPUINFO
    create_vm: Callable[[int], int] = lambda fd: fcntl.ioctl(fd, KVM_CREATE_VM, 0)


def choose(setting: Setting = Setting.AUTO, host: Host | None = None) -> Choice:
    """An explicit setting wins unasked; `auto` takes KVM when nothing speaks against it."""
    if setting is not Setting.AUTO:
        return Choice(Accelerator(setting.value), "configured")
    obstacle = kvm_obstacle(host or Host())
    if obstacle:
        return Choice(Accelerator.TCG, obstacle)
    return Choice(Accelerator.KVM, f"{(host or Host()).device} works")


def kvm_obstacle(host: Host) -> str:
    """Why KVM cannot run a guest here, or an empty string."""
    try:
        fd = os.open(host.device, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return f"{host.device}: {error.strerror}"
    try:
        return _cpu_obstacle(host) or _vm_obstacle(host, fd)
    finally:
        os.close(fd)


#: Devices that have made a VM. Another module behind the same name is another device node.
_have_made: set[tuple[Path, int, int, int, int]] = set()


def _vm_obstacle(host: Host, fd: int) -> str:
    found = os.fstat(fd)
    device = (host.device, found.st_dev, found.st_ino, found.st_rdev, found.st_ctime_ns)
    if device in _have_made:
        return ""
    try:
        os.close(host.create_vm(fd))
    except OSError as error:
        return f"{host.device}: KVM_CREATE_VM: {error.strerror}"
    _have_made.add(device)
    return ""


def _cpu_obstacle(host: Host) -> str:
    wanted = _VIRTUALISATION_FLAGS.get(host.machine)
    if wanted is None or wanted & _cpu_flags(host.cpuinfo):
        return ""
    return f"{host.device} is there but the CPU has none of {', '.join(sorted(wanted))}"


@lru_cache
def _cpu_flags(cpuinfo: Path) -> frozenset[str]:
    """The first CPU's: what the kernel says of the others may take it long."""
    try:
        with cpuinfo.open(errors="replace") as lines:
            return next(
                (frozenset(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), frozenset()
            )
    except OSError:
        return frozenset()


def device_groups(device: Path = KVM_DEVICE) -> tuple[int, ...]:
    """Supplementary groups with which an unprivileged QEMU may open /dev/kvm: none when everybody may.

    :raises HostFailed: only its owner may, so QEMU would have to run as root
    """
    try:
        status = device.stat()
    except OSError as error:
        raise HostFailed("use KVM", str(device), error.strerror or "", hint="set shimd.accelerator to tcg") from error
    if status.st_mode & (stat.S_IROTH | stat.S_IWOTH) == stat.S_IROTH | stat.S_IWOTH:
        return ()
    if status.st_mode & (stat.S_IRGRP | stat.S_IWGRP) == stat.S_IRGRP | stat.S_IWGRP:
        return (status.st_gid,)
    raise HostFailed(
        "use KVM", str(device), "only its owner may open it, and QEMU runs without privileges",
        hint="give it to group kvm with mode 0660",
    )  # fmt: skip
