"""Every field of the OCI runtime specification 1.2, for Linux, has a fate: it arrives, is refused, or is a listed difference."""

import json
from typing import Any

import pytest

from integration.differential.spec_parts import SPEC
from kata_shimd.agent import oci
from kata_shimd.errors import Unimplemented
from kata_shimd.pod import spec, storage

#: Every field with a value that is not the same as nothing.
FULL: dict[str, Any] = {
    "ociVersion": "1.2.0",
    "hostname": "h",
    "domainname": "d",
    "annotations": {"k": "v"},
    "root": {"path": "rootfs", "readonly": True},
    "mounts": [
        {
            "destination": "/m",
            "source": "tmpfs",
            "type": "tmpfs",
            "options": ["nosuid"],
            "uidMappings": [{"containerID": 1, "hostID": 2, "size": 3}],
            "gidMappings": [{"containerID": 1, "hostID": 2, "size": 3}],
        }
    ],
    "hooks": {
        kind: [{"path": "/h"}]
        for kind in ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
    },
    "process": {
        "terminal": True,
        "consoleSize": {"height": 1, "width": 2},
        "cwd": "/w",
        "env": ["A=b"],
        "args": ["sh"],
        "commandLine": "c",
        "user": {"uid": 1, "gid": 2, "umask": 63, "additionalGids": [3], "username": "u"},
        "rlimits": [{"type": "RLIMIT_CORE", "soft": 1, "hard": 2}],
        "capabilities": {
            name: ["CAP_KILL"] for name in ("effective", "bounding", "inheritable", "permitted", "ambient")
        },
        "noNewPrivileges": True,
        "oomScoreAdj": 5,
        "apparmorProfile": "p",
        "selinuxLabel": "l",
        "scheduler": {"policy": "SCHED_IDLE"},
        "ioPriority": {"class": "IOPRIO_CLASS_IDLE", "priority": 1},
        "execCPUAffinity": {"initial": "0"},
    },
    "linux": {
        "namespaces": [{"type": "pid"}, {"type": "ipc", "path": "/proc/1/ns/ipc"}],
        "uidMappings": [{"containerID": 1, "hostID": 2, "size": 3}],
        "gidMappings": [{"containerID": 1, "hostID": 2, "size": 3}],
        "timeOffsets": {"monotonic": {"secs": 1}},
        "devices": [{"path": "/dev/x", "type": "c", "major": 1, "minor": 5, "fileMode": 384, "uid": 1, "gid": 2}],
        "netDevices": {"eth1": {"name": "eth0"}},
        "cgroupsPath": "/a/b",
        "rootfsPropagation": "rslave",
        "maskedPaths": ["/p"],
        "readonlyPaths": ["/q"],
        "mountLabel": "m",
        "personality": {"domain": "LINUX32"},
        "intelRdt": {"closID": "c", "l3CacheSchema": "L3:0=f", "memBwSchema": "MB:0=70"},
        "sysctl": {"kernel.msgmax": "1"},
        "seccomp": {
            "defaultAction": "SCMP_ACT_ALLOW",
            "defaultErrnoRet": 38,
            "architectures": ["SCMP_ARCH_X86_64"],
            "flags": ["SECCOMP_FILTER_FLAG_LOG"],
            "listenerPath": "/l",
            "listenerMetadata": "m",
            "syscalls": [
                {
                    "names": ["chmod"],
                    "action": "SCMP_ACT_ERRNO",
                    "errnoRet": 11,
                    "args": [{"index": 1, "value": 2, "valueTwo": 3, "op": "SCMP_CMP_EQ"}],
                }
            ],
        },
        "resources": {
            "devices": [{"allow": True, "type": "c", "major": 1, "minor": 5, "access": "r"}],
            "memory": {
                "limit": 1,
                "reservation": 2,
                "swap": 3,
                "kernel": 4,
                "kernelTCP": 5,
                "swappiness": 6,
                "disableOOMKiller": True,
                "useHierarchy": True,
                "checkBeforeUpdate": True,
            },
            "cpu": {
                "shares": 1,
                "quota": 2,
                "burst": 3,
                "period": 4,
                "realtimeRuntime": 5,
                "realtimePeriod": 6,
                "cpus": "0",
                "mems": "0",
                "idle": 1,
            },
            "pids": {"limit": 9},
            "blockIO": {
                "weight": 1,
                "leafWeight": 2,
                "weightDevice": [{"major": 8, "minor": 1, "weight": 1, "leafWeight": 2}],
                **{
                    name: [{"major": 8, "minor": 1, "rate": 1}]
                    for name in (
                        "throttleReadBpsDevice",
                        "throttleWriteBpsDevice",
                        "throttleReadIOPSDevice",
                        "throttleWriteIOPSDevice",
                    )
                },
            },
            "hugepageLimits": [{"pageSize": "2MB", "limit": 1}],
            "network": {"classID": 1, "priorities": [{"name": "eth0", "priority": 1}]},
            "rdma": {"mlx5": {"hcaHandles": 1, "hcaObjects": 2}},
            "unified": {"memory.high": "5"},
        },
    },
    "windows": {"layerFolders": ["c"]},
    "solaris": {"milestone": "m"},
    "vm": {"kernel": {"path": "/k"}},
    "zos": {"namespaces": [{"type": "ipc"}]},
}

REFUSED = {
    "hooks",
    "mounts.uidMappings",
    "mounts.gidMappings",
    "process.scheduler",
    "process.ioPriority",
    "process.execCPUAffinity",
    "linux.uidMappings",
    "linux.gidMappings",
    "linux.netDevices",
    "linux.personality",
    "linux.resources.cpu.burst",
    "linux.resources.cpu.idle",
}
"""What Create refuses, by its path."""

LISTED = {
    "process.commandLine",
    "process.apparmorProfile",
    "process.selinuxLabel",
    "linux.mountLabel",
    "linux.namespaces.path",
    "linux.timeOffsets",
    "linux.intelRdt",
    "linux.seccomp.listenerPath",
    "linux.seccomp.listenerMetadata",
    "linux.resources.memory.useHierarchy",
    "linux.resources.memory.checkBeforeUpdate",
    "linux.resources.cpu.cpus",
    "linux.resources.cpu.mems",
    "linux.resources.network",
    "linux.resources.rdma",
    "windows",
    "solaris",
    "vm",
    "zos",
}
"""What does not reach the agent; each has a row in the list of differences."""

IDENTITY = {"mounts.destination", "process.args", "process.cwd", "root.path"}
"""What a spec is none without, or gets another value in the guest."""


def fields(value: object, path: str = "") -> set[str]:
    """Paths of all fields; those of a map of free names are the map's, and so are those of a part that goes or stays as one."""
    if path in REFUSED | LISTED or path.endswith(("annotations", "sysctl", "unified")):
        return {path}
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return set().union(*(fields(item, path) for item in value))
    if not isinstance(value, dict):
        return {path}
    return set().union(*(fields(item, f"{path}.{key}" if path else key) for key, item in value.items()))


def without(value: Any, path: str) -> Any:
    """A copy that lacks one field."""
    key, _, rest = path.partition(".")
    if isinstance(value, list):
        return [without(item, path) for item in value]
    if not isinstance(value, dict) or key not in value:
        return value
    if rest:
        return {**value, key: without(value[key], rest)}
    return {name: item for name, item in value.items() if name != key}


def told(value: dict[str, Any]) -> bytes:
    """What the agent is sent for a spec, mounts as they are."""
    plan = storage.Plan(storage.RootfsShare(()), (), tuple(value.get("mounts", ())), "/rootfs")
    return bytes(oci.spec(spec.for_guest(value, "c1", plan, seccomp=True)))


#: What Create takes.
TAKEN = FULL
for _path in REFUSED:
    TAKEN = without(TAKEN, _path)


@pytest.mark.parametrize("path", sorted(fields(FULL) - REFUSED - LISTED - IDENTITY))
def test_a_field_that_is_neither_refused_nor_listed_arrives(path: str) -> None:
    assert told(TAKEN) != told(without(TAKEN, path)), f"{path} is dropped in silence"


@pytest.mark.parametrize("path", sorted(REFUSED))
def test_a_field_that_the_guest_cannot_honour_is_refused_by_name(path: str) -> None:
    others = FULL
    for other in REFUSED - {path}:
        others = without(others, other)
    with pytest.raises(Unimplemented) as refusal:
        told(others)
    name = path.rpartition(".")[2]
    assert name in str(refusal.value) or (name.endswith("Mappings") and "id mappings" in str(refusal.value))


@pytest.mark.parametrize("path", sorted(LISTED))
def test_a_field_that_is_left_out_is_listed(path: str) -> None:
    assert told(TAKEN) == told(without(TAKEN, path)), f"{path} is listed as left out, and arrives"
    listed = " ".join(part.part for part in SPEC)
    assert path.rpartition(".")[2] in listed, f"no row for {path}"


@pytest.mark.parametrize("path", sorted(REFUSED))
def test_what_is_refused_is_listed_too(path: str) -> None:
    listed = " ".join(part.part for part in SPEC if part.fate.startswith("refused"))
    assert path.rpartition(".")[2] in listed


def test_what_the_converter_leaves_out_is_known_here() -> None:
    assert set(oci.MAY_GO) <= LISTED


def test_the_specification_is_read_as_containerd_writes_it() -> None:
    assert spec.parse(json.dumps(TAKEN).encode(), "config.json") == TAKEN
