"""What the kernel and the host's set-up give: accelerator, devices, cgroups, mounts, memory, limits, the run directory."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from kata_shimd.config.host import Finding, check_host
from kata_shimd.config.host import Verdict as HostVerdict
from kata_shimd.config.load import is_error, see_check
from kata_shimd.debug.check import Row, Scene, Verdict

CAP_SYS_ADMIN: Final = 21
#: A daemon, QEMU and virtiofsd have some hundred descriptors; virtiofsd one more for each file that the guest holds open.
MIN_NOFILE: Final = 4096
#: An idle pod takes about 225 MB under TCG (measured); below, the first pod is already too much.
MIN_AVAILABLE_MIB: Final = 256
#: Journals, ledgers, consoles: 1 MiB each and two generations of a journal.
MIN_RUN_MIB: Final = 16
#: One less than what a socket's address holds, and the longest name in a pod's directory (docs/contracts.md).
MAX_SOCKET_PATH: Final = 106
LONGEST_SOCKET: Final = f"pods/{'0' * 20}/extra-monitor.sock"

#: What the configuration knows to look for by itself; the rest of its findings are asked more thoroughly elsewhere.
_FROM_CONFIG: Final = frozenset({"tun", "vhost-net", "entropy", "vcpus", "memory", "sandbox_bind_mounts"})


def privileges(scene: Scene) -> Iterator[Row]:
    """Mounts, network and namespaces need root with CAP_SYS_ADMIN."""
    effective = int(_field(scene.proc / "self/status", "CapEff:") or "0", 16)
    if effective >> CAP_SYS_ADMIN & 1:
        yield Row("privileges", Verdict.PASS, "CAP_SYS_ADMIN")
    else:
        yield Row("privileges", Verdict.FAIL, "no CAP_SYS_ADMIN", "run as root, in no unprivileged container")


def configuration(scene: Scene) -> Iterator[Row]:
    """Loading it, as a pod would; and who may write it."""
    config, problems = scene.config.config, scene.config.problems
    files = ", ".join(map(str, scene.config.files)) or "no file: built-in defaults"
    strict, see = config is not None and config.shimd.strict, see_check(scene.config.files)
    wrong = [str(problem) for problem in problems if is_error(problem, strict=strict)]
    if config is None or wrong:
        yield Row("configuration", Verdict.FAIL, "; ".join(wrong) or files, see)
        return
    advice = f"{len(problems)} warning{'s' if len(problems) > 1 else ''}: {see}" if problems else ""
    yield Row("configuration", Verdict.PASS, files, advice)
    yield from (_row(found) for found in _findings(scene) if found.name == "configuration" and found.fix)


def accelerator(scene: Scene) -> Iterator[Row]:
    """TCG is slow but right, so it passes where nobody asked for KVM."""
    if scene.config.config is None:
        yield _unknown("accelerator")
        return
    setting = str(scene.config.config.shimd.accelerator)
    name, why = scene.accelerator(setting)
    obstacle = scene.kvm_obstacle() if setting == "kvm" else ""
    if obstacle:
        yield Row("accelerator", Verdict.FAIL, obstacle, 'give this host KVM, or set accelerator = "auto"')
    else:
        advice = "many times slower than KVM; deadlines are scaled" if name == "tcg" else ""
        yield Row("accelerator", Verdict.PASS, f"{name}: {why}", advice)


def devices(scene: Scene) -> Iterator[Row]:
    """What the configuration needs of /dev, of memory and CPUs."""
    if scene.config.config is None:
        yield _unknown("devices")
        return
    yield from (_row(found) for found in _findings(scene) if found.name in _FROM_CONFIG)


def vsock(scene: Scene) -> Iterator[Row]:
    if scene.config.config is None:
        yield _unknown("vsock")
    elif scene.transport != "vsock":
        yield Row("vsock", Verdict.SKIP, f"the agent is reached over {scene.transport}")
    elif _is_device(scene.dev / "vhost-vsock"):
        yield Row("vsock", Verdict.PASS, str(scene.dev / "vhost-vsock"))
    else:
        yield Row("vsock", Verdict.FAIL, f"{scene.dev / 'vhost-vsock'}: no such device", "modprobe vhost_vsock")


def cgroups(scene: Scene) -> Iterator[Row]:
    if (scene.cgroup / "cgroup.controllers").is_file():
        yield Row("cgroups", Verdict.PASS, "v2")
    elif (scene.cgroup / "unified/cgroup.controllers").is_file():
        yield Row("cgroups", Verdict.PASS, "v1 controllers, with v2 beside them (hybrid)")
    elif (scene.cgroup / "memory").is_dir():
        yield Row("cgroups", Verdict.PASS, "v1")
    else:
        yield Row("cgroups", Verdict.FAIL, f"nothing is mounted at {scene.cgroup}", "mount cgroup2 there")


def mounts(scene: Scene) -> Iterator[Row]:
    """What a daemon does with its shared directory, done with ``/`` in a mount namespace that ends with the trial.

    Root's rights do not tell: a profile of AppArmor's or seccomp's may forbid it all the same.
    """
    answer = scene.ask(("unshare", "--mount", "--propagation", "slave", "mount", "--bind", "--make-shared", "/", "/"))
    if answer.status is None:
        yield Row("mounts", Verdict.SKIP, f"cannot be tried: unshare: {answer.said}")
    elif answer.status != 0:
        fix = "run as root, where no profile of AppArmor's or seccomp's forbids unshare and mount"
        yield Row("mounts", Verdict.FAIL, f"no shared mount in a namespace of its own: {answer.said.strip()}", fix)
    else:
        yield Row("mounts", Verdict.PASS, "a daemon can have a shared mount in a namespace of its own")


def memory(scene: Scene) -> Iterator[Row]:
    available = int((_field(scene.proc / "meminfo", "MemAvailable:") or "0").split()[0]) >> 10
    if available < MIN_AVAILABLE_MIB:
        fix = f"free memory: a small pod takes {MIN_AVAILABLE_MIB} MiB"
        yield Row("memory-free", Verdict.FAIL, f"{available} MiB available", fix)
    else:
        yield Row("memory-free", Verdict.PASS, f"{available} MiB available")


def descriptors(scene: Scene) -> Iterator[Row]:
    """The limit of containerd, which daemons inherit; ours where containerd does not run."""
    pid = containerd_pid(scene)
    limits = (scene.proc / (str(pid) if pid else "self") / "limits").read_text()
    hard = next((line.split()[4] for line in limits.splitlines() if line.startswith("Max open files")), "0")
    whose = f"containerd's, pid {pid}" if pid else "this process's; containerd does not run"
    if hard != "unlimited" and int(hard) < MIN_NOFILE:
        fix = f"LimitNOFILE={MIN_NOFILE} or more in containerd's unit"
        yield Row("descriptors", Verdict.FAIL, f"at most {hard} open files ({whose})", fix)
    else:
        yield Row("descriptors", Verdict.PASS, f"at most {hard} open files ({whose})")


def run_directory(scene: Scene) -> Iterator[Row]:
    """Ours alone, writable, roomy, and short enough for the sockets in it."""
    where = scene.run_dir
    existing = next(path for path in (where, *where.parents) if path.exists())
    mode = existing.stat().st_mode
    room = os.statvfs(existing)
    free = room.f_bavail * room.f_frsize >> 20
    obstacle = _run_obstacle(where, existing, mode, free)
    if obstacle:
        yield Row("run-directory", Verdict.FAIL, *obstacle)
        return
    kind = _mount_of(scene, existing.resolve())
    fstype = kind[kind.index("-") + 1] if "-" in kind else "?"
    yield Row("run-directory", Verdict.PASS, f"{where} on {fstype}, {free} MiB free")


def _run_obstacle(where: Path, existing: Path, mode: int, free: int) -> tuple[str, str] | None:
    if len(os.fsencode(where / LONGEST_SOCKET)) > MAX_SOCKET_PATH:
        return f"{where}: too long for the path of a socket", "set KATA_SHIMD_RUN_DIR to a shorter one"
    if not os.access(existing, os.W_OK | os.X_OK):
        return f"{existing}: not writable", "run as root, on a file system that is not read-only"
    if existing == where and (existing.stat().st_uid != os.geteuid() or mode & 0o022):
        return f"{where}: others than root may write there", f"chown root {where}; chmod 0700 {where}"
    if free < MIN_RUN_MIB:
        return f"{existing}: {free} MiB free", "free space there"
    return None


# --- looking ---------------------------------------------------------------------------------------------------------


def containerd_pid(scene: Scene) -> int:
    """The pid of a containerd that runs, or 0."""
    pids = sorted(int(path.name) for path in scene.proc.glob("[0-9]*"))
    return next((pid for pid in pids if _comm(scene.proc / str(pid)) == "containerd"), 0)


def _comm(process: Path) -> str:
    try:
        return (process / "comm").read_text().strip()
    except OSError:
        return ""


def _findings(scene: Scene) -> tuple[Finding, ...]:
    return check_host(scene.config.config, scene.config.files) if scene.config.config else ()


def _row(found: Finding) -> Row:
    """Their warning is a pass with advice."""
    verdict = Verdict.FAIL if found.verdict is HostVerdict.FAIL else Verdict.PASS
    return Row(found.name, verdict, found.why, found.fix)


def _unknown(name: str) -> Row:
    return Row(name, Verdict.SKIP, "unknown without a configuration")


def _is_device(path: Path) -> bool:
    try:
        return stat.S_ISCHR(path.stat().st_mode)
    except OSError:
        return False


def _field(path: Path, name: str) -> str:
    """What follows ``name`` on its line in a file of /proc."""
    lines = path.read_text().splitlines()
    return next((line.removeprefix(name).strip() for line in lines if line.startswith(name)), "")


def _mount_of(scene: Scene, path: Path) -> list[str]:
    """The fields of the mount that ``path`` lies on; of two at one place the later one hides the earlier."""
    best: list[str] = []
    for line in (scene.proc / "self/mountinfo").read_text().splitlines():
        fields = line.split()
        if path.is_relative_to(fields[4]) and len(fields[4]) >= len(best[4] if best else ""):
            best = fields
    return best
