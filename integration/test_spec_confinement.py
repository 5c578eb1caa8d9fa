"""What the OCI spec forbids and limits in a container is forbidden and limited in the guest."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from integration.harness.ctr import Ctr
from integration.harness.sandbox import Sandbox, sandbox, table

MIB: Final = 1 << 20
POD_SYSCTL: Final = {
    "net.ipv4.ip_unprivileged_port_start": "81",
    "kernel.shm_rmid_forced": "1",
    "kernel.domainname": "pod.example",
}


@pytest.fixture(scope="module")
def pod(ctr: Ctr, rootfs_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """CRI gives a pod's sysctls to its first container."""
    changes: dict[str, Any] = {"hostname": "the-pod", "linux__sysctl": POD_SYSCTL}
    with sandbox(ctr, "spec-confined", rootfs_dir, tmp_path_factory.mktemp("spec"), **changes) as made:
        yield made


# --- paths -----------------------------------------------------------------------------------------------------------


def test_masked_and_read_only_paths(pod: Sandbox) -> None:
    """Of default and own ones: a file masked reads empty, a directory lists empty, read-only ones refuse."""
    spec = pod.script(
        "echo kcore=$(head -c 1 /proc/kcore | wc -c); echo passwd=$(wc -c < /etc/passwd);"
        "echo firmware=$(ls /sys/firmware | wc -l); echo home=$(ls /home | wc -l);"
        "for f in /proc/sysrq-trigger /proc/sys/kernel/panic /etc/group; do (: >> $f) 2>&1; done"
    )
    spec.content["linux"]["maskedPaths"] += ["/etc/passwd", "/home", "/no/such/path"]
    spec.content["linux"]["readonlyPaths"] += ["/etc/group", "/no/such/path"]
    *masked, sysrq, sysctl, own = pod.run(spec).out.splitlines()
    assert set(table("\n".join(masked)).values()) == {"0"} and len(masked) == 4, masked
    assert all("Read-only file system" in line for line in (sysrq, sysctl, own)), (sysrq, sysctl, own)


def test_a_read_only_root(pod: Sandbox) -> None:
    spec = pod.script("touch /x 2>&1; touch /dev/shm/fine /run/fine && echo fine").set("root.readonly", True)
    refused, fine = pod.run(spec).ok().out.splitlines()
    assert "Read-only file system" in refused
    assert fine == "fine"


@pytest.mark.parametrize("asked", ["", "rprivate", "rslave", "rshared"])
def test_root_propagation(pod: Sandbox, asked: str) -> None:
    """Mounts made inside spread from a shared root alone. In the guest there is nobody a slave could hear of mounts from."""
    spec = pod.script("head -n 1 /proc/self/mountinfo")
    if asked:
        spec.set("linux.rootfsPropagation", asked)
    fields = pod.run(spec).ok().out.split()
    assert fields[4] == "/"
    tags = {field.partition(":")[0] for field in fields[6 : fields.index("-")]}
    assert ("shared" in tags) == (asked == "rshared"), fields


# --- devices ---------------------------------------------------------------------------------------------------------


def test_devices_are_made_and_the_others_denied(pod: Sandbox) -> None:
    """/dev/zero a second time under another name, mode and owner; a node of /dev/mem is made and cannot be opened."""
    spec = pod.script(
        "stat -c 'node=%a %u:%g %t:%T' /dev/other-zero;"
        "echo zeros=$(head -c 3 /dev/other-zero | od -An -tx1);"
        "echo random=$(head -c 3 /dev/urandom | wc -c);"
        "mknod /run/kmsg c 1 11 && echo kmsg=$(head -c 1 /run/kmsg 2>&1);"
        "echo read=$(head -c 1 /dev/read-only | wc -c); (: > /dev/read-only) 2>&1 | sed s/^/write=/"
    )
    device = {"type": "c", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 1000, "gid": 2000}
    # 1:8 is /dev/random, which every runtime allows whatever the rules say; 1:7 is /dev/full as well.
    spec.content["linux"]["devices"] = [
        {"path": "/dev/other-zero", **device},
        {"path": "/dev/read-only", "type": "c", "major": 10, "minor": 183},
    ]
    spec.content["linux"]["resources"]["devices"] += [
        {"allow": True, "type": "c", "major": 1, "minor": 5, "access": "rwm"},
        {"allow": True, "type": "c", "major": 10, "minor": 183, "access": "r"},
        {"allow": True, "type": "c", "major": 1, "minor": 11, "access": "m"},
    ]
    found = table(pod.run(spec).ok().stdout.decode())
    assert found["node"] == "640 1000:2000 1:5"
    assert found["zeros"] == "00 00 00"
    assert found["random"] == "3"
    assert "Operation not permitted" in found["kmsg"]
    assert "Operation not permitted" in found["write"]


# --- limits ----------------------------------------------------------------------------------------------------------

LIMITS: Final = "memory.max memory.low memory.swap.max cpu.max cpu.weight pids.max"
SHOW_LIMITS: Final = f"cd /sys/fs/cgroup; for f in {LIMITS}; do echo $f=$(cat $f); done"


@pytest.mark.vm
def test_limits_are_in_the_guests_cgroup(pod: Sandbox) -> None:
    spec = with_cgroup(pod.script(SHOW_LIMITS))
    resources = spec.content["linux"]["resources"]
    resources["memory"] = {"limit": 64 * MIB, "reservation": 16 * MIB, "swap": 96 * MIB}
    resources["cpu"] = {"quota": 25_000, "period": 50_000, "shares": 2048, "cpus": "0-63", "mems": "0"}
    resources["pids"] = {"limit": 77}
    found = table(pod.run(spec).ok().out)
    assert found["memory.max"] == str(64 * MIB)
    assert found["memory.low"] == str(16 * MIB)
    assert found["memory.swap.max"] == str(32 * MIB), "OCI's swap is memory and swap"
    assert found["cpu.max"] == "25000 50000"
    assert found["cpu.weight"] == str(1 + (2048 - 2) * 9999 // 262142)
    assert found["pids.max"] == "77"


@pytest.mark.vm
def test_files_of_the_control_group_by_their_names(pod: Sandbox) -> None:
    """What Kubernetes sets on nodes with cgroup v2, and for which the protocol of Kata's agent has no field."""
    script = "cd /sys/fs/cgroup; for f in memory.high memory.oom.group pids.max; do echo $f=$(cat $f); done"
    wanted = {"memory.high": str(32 * MIB), "memory.oom.group": "1", "pids.max": "66"}
    assert table(pod.run(with_cgroup(pod.script(script)).set("linux.resources.unified", wanted)).ok().out) == wanted


@pytest.mark.vm
@pytest.mark.parametrize(("name", "said"), [("no.such.file", "controller `no`"), ("../escape", "../escape")])
def test_a_file_that_no_control_group_has_is_refused(pod: Sandbox, name: str, said: str) -> None:
    done = pod.run(pod.spec("true").set("linux.resources.unified", {name: "1"}))
    assert done.code != 0 and said in done.err, done


def with_cgroup(spec: Any) -> Any:
    """Show the container its control group, as CRI does."""
    options = ["nosuid", "noexec", "nodev", "relatime", "ro"]
    mount = {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": options}
    spec.content["mounts"].append(mount)
    return spec


def test_too_many_processes_are_refused(pod: Sandbox) -> None:
    spec = pod.script("for i in 1 2 3 4 5 6 7 8 9; do sleep 60 & done 2>&1; echo never")
    spec.set("linux.resources.pids", {"limit": 5})
    done = pod.run(spec)
    assert "never" not in done.out and "fork" in done.out + done.err


def test_too_much_memory_kills(pod: Sandbox) -> None:
    spec = pod.script("head -c 40000000 /dev/zero | tail | wc -c; echo survived; exit 3")
    spec.set("linux.resources.memory", {"limit": 16 * MIB, "swap": 16 * MIB})
    done = pod.run(spec)
    assert "40000000" not in done.out


# --- namespaces and names --------------------------------------------------------------------------------------------


@pytest.mark.vm
def test_namespaces(pod: Sandbox) -> None:
    """Containers of a pod share ipc, uts and network, and have processes, mounts and cgroup for themselves."""
    links = "for n in ipc uts net pid mnt cgroup; do echo $n=$(readlink /proc/self/ns/$n); done"
    script = f"{links}; echo pids=$(ls /proc | grep -c '^[0-9]')"
    one, two = (table(pod.run(pod.script(script)).ok().out) for _ in range(2))
    pause = table(pod.ctr.exec(pod.id, pod.fresh("e"), "sh", "-c", script).ok().out)
    assert {name for name in one if one[name] == pause[name]} >= {"ipc", "uts", "net"}
    assert {name for name in one if one[name] != pause[name]} >= {"pid", "mnt", "cgroup"}
    assert two["ipc"] == one["ipc"]
    # sh, its command substitution, ls and grep.
    assert int(one["pids"]) <= 5


@pytest.mark.vm
def test_a_shared_pid_namespace(pod: Sandbox) -> None:
    spec = pod.script("readlink /proc/self/ns/pid; ps -o args | grep -c '[s]leep 86400'")
    for namespace in spec.content["linux"]["namespaces"]:
        if namespace["type"] == "pid":
            namespace["path"] = "/proc/1/ns/pid"
    own, seen = pod.run(spec).ok().out.splitlines()
    assert own == pod.ctr.exec(pod.id, pod.fresh("e"), "readlink", "/proc/self/ns/pid").ok().out
    assert int(seen) >= 1


def test_the_hostname_is_the_pods(pod: Sandbox) -> None:
    assert pod.ctr.exec(pod.id, pod.fresh("e"), "hostname").ok().out == "the-pod"


@pytest.mark.vm
def test_every_container_has_the_pods_hostname(pod: Sandbox) -> None:
    assert pod.run(pod.spec("hostname")).ok().out == "the-pod"


# --- kernel settings and system calls --------------------------------------------------------------------------------


def read_sysctl(names: Any) -> str:
    return "; ".join(f"echo {name}=$(cat /proc/sys/{name.replace('.', '/')})" for name in names)


def test_kernel_settings_of_the_pod(pod: Sandbox) -> None:
    found = table(pod.ctr.exec(pod.id, pod.fresh("e"), "sh", "-c", read_sysctl(POD_SYSCTL)).ok().out)
    assert found == POD_SYSCTL


@pytest.mark.vm
def test_kernel_settings_of_the_pod_hold_in_its_containers(pod: Sandbox) -> None:
    assert table(pod.run(pod.script(read_sysctl(POD_SYSCTL))).ok().out) == POD_SYSCTL


@pytest.mark.parametrize(
    "sysctl", [{"net.core.somaxconn": "222"}, {"kernel.msgmax": "9999"}, {"fs.mqueue.msg_max": "17"}]
)
def test_kernel_settings_of_a_container(pod: Sandbox, sysctl: dict[str, str]) -> None:
    spec = pod.script(read_sysctl(sysctl)).set("linux.sysctl", sysctl)
    assert table(pod.run(spec).ok().out) == sysctl


def test_an_unknown_kernel_setting_is_refused(pod: Sandbox) -> None:
    done = pod.run(pod.script("true").set("linux.sysctl", {"kernel.no_such_setting": "1"}))
    assert done.code != 0 and "no_such_setting" in done.err


NO_CHMOD: Final = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "architectures": ["SCMP_ARCH_X86_64"],
    "syscalls": [
        {"names": ["chmod", "fchmod", "fchmodat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 11},
        {"names": ["sethostname"], "action": "SCMP_ACT_ERRNO"},
    ],
}
CHMOD: Final = "grep ^Seccomp: /proc/self/status; chmod 600 /run 2>&1 && echo changed"


def test_seccomp_is_not_handed_on_by_default(pod: Sandbox) -> None:
    """Kata's default, disable_guest_seccomp = true."""
    spec = pod.script(CHMOD).set("linux.seccomp", NO_CHMOD)
    assert pod.run(spec).ok().out.splitlines() == ["Seccomp:\t0", "changed"]


@pytest.fixture(scope="module")
def filtering(ctr: Ctr, rootfs_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    directory = tmp_path_factory.mktemp("seccomp")
    config = directory / "configuration.toml"
    config.write_text("[runtime]\ndisable_guest_seccomp = false\n")
    with sandbox(ctr, "spec-seccomp", rootfs_dir, directory, config=config, linux__seccomp=NO_CHMOD) as made:
        yield made


@pytest.mark.vm
def test_seccomp_filters_init_and_exec(filtering: Sandbox) -> None:
    """errno 11 and the default 1; the filter is the container's, so an exec has it too."""
    done = filtering.run(filtering.script(CHMOD).set("linux.seccomp", NO_CHMOD))
    assert "Seccomp:\t2" in done.out and "Resource temporarily unavailable" in done.out
    execed = filtering.ctr.exec(filtering.id, filtering.fresh("e"), "sh", "-c", CHMOD)
    assert "Seccomp:\t2" in execed.out and "Resource temporarily unavailable" in execed.out
    spec = filtering.script("hostname x 2>&1").set("linux.seccomp", NO_CHMOD)
    assert "Operation not permitted" in filtering.run(spec).out


#: What a shell and the runtime that starts it need; all else gets the default action.
ORDINARY: Final = """
    read write open openat close close_range stat fstat lstat newfstatat statx lseek mmap mprotect munmap mremap brk
    madvise rt_sigaction rt_sigprocmask rt_sigreturn rt_sigsuspend sigaltstack ioctl fcntl pread64 readv writev
    sendfile access faccessat faccessat2 pipe pipe2 select pselect6 poll ppoll dup dup2 dup3 umask getdents64 getcwd
    chdir fchdir getpid gettid getppid getpgrp getpgid getsid setpgid setsid clone clone3 fork vfork execve execveat
    exit exit_group wait4 waitid kill tgkill uname readlink readlinkat getuid getgid geteuid getegid getgroups setuid
    setgid setgroups setresuid setresgid getresuid getresgid capget capset prctl arch_prctl set_tid_address
    set_robust_list futex rseq getrandom sysinfo prlimit64 getrlimit setrlimit clock_gettime clock_nanosleep nanosleep
    time gettimeofday sched_yield sched_getaffinity socket connect sendto recvfrom sendmsg recvmsg unlink unlinkat
    seccomp
    """


@pytest.mark.vm
@pytest.mark.parametrize(("errno", "says"), [(1, "Operation not permitted"), (38, "Function not implemented")])
def test_seccomp_default_errno(filtering: Sandbox, errno: int, says: str) -> None:
    profile = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": errno,
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{"names": ORDINARY.split(), "action": "SCMP_ACT_ALLOW"}],
    }
    done = filtering.run(filtering.script("hostname x 2>&1").set("linux.seccomp", profile))
    assert says in done.out, done
