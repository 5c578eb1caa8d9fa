"""The parts of the OCI spec that mean the host, and what becomes of each. `page` writes them to ``docs/differences.md``."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the OCI spec that does not reach the guest as it stands."""

    part: str
    fate: str
    reason: str


SPEC: Final[tuple[Part, ...]] = (
    Part(
        "`linux.uidMappings`, `linux.gidMappings`",
        "refused: `FAILED_PRECONDITION`",
        "The guest maps no ids, so files would get other owners.",
    ),
    Part(
        "`mounts`: `uidMappings`, `gidMappings`",
        "refused: `FAILED_PRECONDITION`",
        "The same, for one mount.",
    ),
    Part(
        "`hooks`",
        "refused: `FAILED_PRECONDITION`",
        "They are programs of the host that expect the container's processes and namespaces there.",
    ),
    Part(
        "`process.scheduler`, `process.ioPriority`, `process.execCPUAffinity`, `linux.personality`, `linux.netDevices`",
        "refused: `FAILED_PRECONDITION`",
        "The protocol of the guest's agent has no field for them.",
    ),
    Part(
        "`linux.resources.cpu`: burst, idle",
        "refused: `FAILED_PRECONDITION`",
        "The protocol of the guest's agent has no field for them.",
    ),
    Part(
        "`linux.resources.memory`: kernel, kernelTCP, swappiness, disableOOMKiller; `linux.resources.cpu`: realtimeRuntime, "
        "realtimePeriod",
        "refused by the default guest",
        "Its control groups are of version 2, which has no such limits.",
    ),
    Part(
        "`linux.resources.unified`, `linux.seccomp.defaultErrnoRet`, `process.user.umask` of a container",
        "honoured by the default guest, unknown to Kata's agent",
        "Kata's protocol has no field for them; they go in an annotation.",
    ),
    Part(
        "`process.user.umask` of an exec other than 022; `linux.resources.unified` in an Update that changes it",
        "refused: `UNIMPLEMENTED`",
        "Neither request has annotations.",
    ),
    Part(
        "`linux.resources.devices` in an Update",
        "left as they were at Create",
        "runc does the same; clients repeat the whole of a container's resources.",
    ),
    Part(
        "`linux.resources.memory`: useHierarchy, checkBeforeUpdate",
        "left out",
        "Version 2 of the control groups is always hierarchical, and makes a group reclaim what is over a new limit.",
    ),
    Part(
        "`linux.seccomp`",
        "left out while `disable_guest_seccomp` is true, Kata's default",
        "The VM is the boundary.",
    ),
    Part(
        "`linux.seccomp`: listenerPath, listenerMetadata",
        "left out",
        "A file descriptor cannot be handed to a process of the host.",
    ),
    Part(
        "`linux.devices`",
        "made with the number that is asked for",
        "What is behind it is the guest's device of that number; for those of `/dev/null` and its like it is the same.",
    ),
    Part(
        "the process and mounts of a pod's `/pause`", "left out", "It is a child of the agent, with no program to run."
    ),
    Part("`process.commandLine`, `windows`, `solaris`, `vm`, `zos`", "left out", "They are for other systems."),
    Part(
        "`process.apparmorProfile`, `process.selinuxLabel`, `linux.mountLabel`",
        "left out",
        "They name policies of the host's kernel.",
    ),
    Part(
        "`linux.namespaces`: network, cgroup, time",
        "the guest's",
        "A pod has one network and one cgroup root; clocks are the VM's.",
    ),
    Part("`linux.namespaces`: pid with a path", "the pod's shared one", "The path names a namespace of the host."),
    Part(
        "`linux.namespaces`: ipc, uts",
        "the pod's, with or without a path",
        "Containers of a pod share them; the path names a namespace of the host.",
    ),
    Part(
        "`linux.namespaces`: mount, pid, cgroup",
        "the container's own even where none is listed",
        "Without one it would be the agent's.",
    ),
    Part(
        "`linux.resources.cpu`: cpus, mems", "left out", "They are numbers of the host's processors and memory nodes."
    ),
    Part("`linux.resources`: network, rdma", "left out", "They are priorities of the host's interfaces and devices."),
    Part(
        "`linux.intelRdt`, `linux.timeOffsets`",
        "left out",
        "They are registers of the host's processor and clocks of the host.",
    ),
    Part(
        "`linux.cgroupsPath`",
        "the guest's own",
        "A path of the host may climb, and nothing in the guest depends on it.",
    ),
    Part(
        "`mounts`: binds of devices and sockets below `/dev`",
        "the guest's own",
        "A device number means nothing in another kernel.",
    ),
    Part(
        "`mounts`: `rshared`",
        "shared inside the guest, where `linux.rootfsPropagation` is `rshared` too, as CRI sets it",
        "What the container mounts is mounted in another kernel and does not reach the host.",
    ),
    Part(
        "`mounts`: `rbind` and `ro` of what has mounts below it",
        "read-only by the host's mount, writable by its own flags in the guest",
        "The guest sees one file system, and what is mounted below stays as writable as on the host.",
    ),
    Part("`mounts`: a bind at `/dev/shm`", "the pod's, in the guest", "Memory cannot be shared across kernels."),
)
