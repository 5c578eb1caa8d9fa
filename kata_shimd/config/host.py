"""Whether this host has what a configuration names; apart from loading, so that a configuration can be shown elsewhere.

Owns the questions and their answers as data. Looks, never changes. Must never happen: an exception for what a host lacks, or
a verdict without a way out.
"""

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from kata_shimd.config.model import AcceleratorSetting, AgentTransport, Config
from kata_shimd.errors import NotFound


class Verdict(StrEnum):
    PASS = "pass"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One question about the host: its name, the verdict, why, and what to do about it."""

    name: str
    verdict: Verdict
    why: str
    fix: str = ""


#: What speaks against KVM here, or nothing: ``vm.accel`` knows, and below this package there is no ``vm``.
KvmObstacle = Callable[[], str]


def check_host(
    config: Config, files: Iterable[Path] = (), kvm_obstacle: KvmObstacle | None = None
) -> tuple[Finding, ...]:
    """Everything ``config`` needs from this host; ``files`` are the configuration files it came from.

    The accelerator is looked at only with a ``kvm_obstacle`` to ask.
    """
    return (
        *_programs(config),
        *_guest(config),
        *([_accelerator(config.shimd.accelerator, kvm_obstacle)] if kvm_obstacle else []),
        *_devices(config),
        *_sizes(config),
        *(_bind(path) for path in config.runtime.sandbox_bind_mounts),
        *(_config_file(path) for path in files),
    )


def find_virtiofsd(config: Config) -> Path:
    """The virtiofsd to run. Raises ``NotFound`` naming every place that was looked at."""
    candidates = config.hypervisor.virtio_fs_daemon
    for path in candidates:
        if _is_program(path):
            return path
    raise NotFound(
        "find virtiofsd",
        ", ".join(map(str, candidates)),
        "no such program",
        hint="set virtio_fs_daemon, or install virtiofsd",
    )


def _programs(config: Config) -> Iterator[Finding]:
    path = config.hypervisor.path
    if _is_program(path):
        yield Finding(name="qemu", verdict=Verdict.PASS, why=str(path))
    else:
        yield Finding(
            name="qemu", verdict=Verdict.FAIL, why=f"{path}: no such program", fix="install QEMU, or set path"
        )
    try:
        yield Finding(name="virtiofsd", verdict=Verdict.PASS, why=str(find_virtiofsd(config)))
    except NotFound as error:
        yield Finding(name="virtiofsd", verdict=Verdict.FAIL, why=f"{error.obj}: {error.cause}", fix=error.hint)


def _guest(config: Config) -> Iterator[Finding]:
    hypervisor = config.hypervisor
    fix = "build one with `kata-shimd guest build`" if hypervisor.initrd else "set kernel and image"
    for name, path in (("kernel", hypervisor.kernel), ("initrd", hypervisor.initrd), ("image", hypervisor.image)):
        if path is not None:
            found = _readable_file(path)
            yield Finding(
                name=name,
                verdict=Verdict.PASS if found else Verdict.FAIL,
                why=str(path) if found else f"{path}: no such file",
                fix="" if found else fix,
            )


def _devices(config: Config) -> Iterator[Finding]:
    yield _device("tun", Path("/dev/net/tun"), Verdict.FAIL, "load the module tun")
    yield _device("entropy", config.hypervisor.entropy_source, Verdict.FAIL, "set entropy_source")
    if not config.hypervisor.disable_vhost_net:
        yield _device("vhost-net", Path("/dev/vhost-net"), Verdict.WARN, "load vhost_net, or set disable_vhost_net")
    if config.shimd.agent_transport is AgentTransport.VSOCK:
        yield _device("vsock", Path("/dev/vhost-vsock"), Verdict.FAIL, "load the module vhost_vsock")


def _accelerator(setting: AcceleratorSetting, kvm_obstacle: KvmObstacle) -> Finding:
    """Falling back to TCG is fine when nobody asked for KVM, but must be seen: it is many times slower."""
    if setting is AcceleratorSetting.TCG:
        return Finding(name="accelerator", verdict=Verdict.PASS, why="tcg: configured")
    if not (obstacle := kvm_obstacle()):
        return Finding(name="accelerator", verdict=Verdict.PASS, why="kvm")
    if setting is AcceleratorSetting.AUTO:
        return Finding(name="accelerator", verdict=Verdict.WARN, why=f"tcg, slow: {obstacle}", fix="give this host KVM")
    fix = 'give this host KVM, or set accelerator = "auto"'
    return Finding(name="accelerator", verdict=Verdict.FAIL, why=obstacle, fix=fix)


def _sizes(config: Config) -> Iterator[Finding]:
    cpus, memory = os.cpu_count() or 1, _memory_mib()
    wanted, boot = config.hypervisor.default_vcpus, config.hypervisor.boot_vcpus(cpus)
    yield Finding(
        name="vcpus",
        verdict=Verdict.WARN if wanted > cpus else Verdict.PASS,
        why=f"{wanted:g} wanted, {cpus} on this host: {boot}",
        fix="lower default_vcpus" if wanted > cpus else "",
    )
    boot_mib = config.hypervisor.default_memory_mib
    yield Finding(
        name="memory",
        verdict=Verdict.FAIL if boot_mib > memory else Verdict.PASS,
        why=f"{boot_mib} MiB wanted, {memory} MiB on this host",
        fix="lower default_memory" if boot_mib > memory else "",
    )


def _memory_mib() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // (1024 * 1024)


def _bind(path: Path) -> Finding:
    if _mode(path):
        return Finding(name="sandbox_bind_mounts", verdict=Verdict.PASS, why=str(path))
    return Finding(
        name="sandbox_bind_mounts", verdict=Verdict.FAIL, why=f"{path}: no such path", fix="make it, or remove it"
    )


def _config_file(path: Path) -> Finding:
    """Whoever can write the configuration chooses what root runs."""
    loose = _mode(path) & (stat.S_IWGRP | stat.S_IWOTH)
    return Finding(
        name="configuration",
        verdict=Verdict.WARN if loose else Verdict.PASS,
        why=f"{path}: writable by others than its owner" if loose else str(path),
        fix=f"chmod go-w {path}" if loose else "",
    )


def _device(name: str, path: Path, otherwise: Verdict, fix: str) -> Finding:
    if stat.S_ISCHR(_mode(path)):
        return Finding(name=name, verdict=Verdict.PASS, why=str(path))
    return Finding(name=name, verdict=otherwise, why=f"{path}: no such device", fix=fix)


def _is_program(path: Path) -> bool:
    return stat.S_ISREG(_mode(path)) and os.access(path, os.X_OK)


def _readable_file(path: Path) -> bool:
    return stat.S_ISREG(_mode(path)) and os.access(path, os.R_OK)


def _mode(path: Path) -> int:
    """The mode of what ``path`` leads to; 0 when there is nothing."""
    try:
        return path.stat().st_mode
    except (OSError, ValueError):
        return 0
