"""The OCI spec of a container: read, judged and rewritten for the guest (`kata.md` §3.4).

Specs are JSON trees (dict), as containerd wrote them; only what is looked at is checked. What cannot be honoured in a VM is refused
or listed in ``docs/differences.md``; nothing is dropped in silence.
"""

import json
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Final

from kata_shimd.errors import InvalidArgument, Unimplemented
from kata_shimd.pod import storage

#: A spec larger than this does not fit a ttrpc message once converted, so it can never reach the guest.
MAX_SPEC: Final = 4 << 20

#: Namespaces the guest decides: each pod has one network and one cgroup root, and clocks are the VM's.
_GUEST_NAMESPACES: Final = frozenset({"network", "cgroup", "time"})


class Kind(Enum):
    """What a container is to its pod."""

    SINGLE = "single"
    SANDBOX = "sandbox"
    CONTAINER = "container"


#: Which annotation says what a container is, in order; the first present decides (`kata.md` §1.3).
_KIND_KEYS: Final = (
    ("io.kubernetes.cri.container-type", {"sandbox": Kind.SANDBOX, "container": Kind.CONTAINER}),
    ("io.kubernetes.cri-o.ContainerType", {"sandbox": Kind.SANDBOX, "container": Kind.CONTAINER}),
    ("io.kubernetes.docker.type", {"podsandbox": Kind.SANDBOX, "container": Kind.CONTAINER}),
)


def load(bundle: Path) -> dict[str, Any]:
    """Read ``config.json``.

    :raises InvalidArgument: it is missing, too large, no JSON, or not shaped as an OCI spec
    """
    path = bundle / "config.json"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InvalidArgument("read config.json", str(path), error.strerror or "cannot be read") from error
    if len(data) > MAX_SPEC:
        raise InvalidArgument("read config.json", str(path), f"{len(data)} bytes, over {MAX_SPEC}")
    return parse(data, str(path))


def parse(data: bytes, where: str) -> dict[str, Any]:
    """:raises InvalidArgument: no JSON, or a part has the wrong shape"""
    try:
        spec = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument("read config.json", where, f"not JSON: {error}") from error
    _check_shape(_SPEC, spec, where)
    process = spec.get("process")
    if process is not None:
        check_process(process, where)
    return dict(spec)


#: A type, the shape of every item of a list in brackets, or the shapes of an object's parts.
Shape = type | list[Any] | dict[str, Any]

_RESOURCES: Final[Shape] = {"cpu": dict, "unified": dict}
#: What is looked at here or in `storage`; all else is for `agent.oci` to judge. Any part may be absent or null.
_SPEC: Final[Shape] = {
    "hostname": str,
    "domainname": str,
    "process": dict,
    "root": {"path": str},
    "mounts": [{"destination": str, "source": str, "type": str, "options": [str]}],
    "annotations": dict,
    "hooks": dict,
    "linux": {
        "namespaces": [{"type": str, "path": str}],
        "resources": _RESOURCES,
        "cgroupsPath": str,
        "sysctl": dict,
    },
}


def _check_shape(shape: Shape, value: object, where: str, part: str = "it") -> None:
    """:raises InvalidArgument: ``value`` has another shape, or a text that no system call takes"""
    kind = shape if isinstance(shape, type) else type(shape)
    if not isinstance(value, kind):
        raise InvalidArgument("read JSON", where, f"{part} is no {_KINDS[kind]}")
    if isinstance(shape, list):
        for index, item in enumerate(value if isinstance(value, list) else ()):
            _check_shape(shape[0], item, where, f"{part}[{index}]")
    elif isinstance(shape, dict) and isinstance(value, dict):
        for key in shape.keys() & {key for key, item in value.items() if item is not None}:
            _check_shape(shape[key], value[key], where, key if part == "it" else f"{part}.{key}")
    elif isinstance(value, str) and not _is_text(value):
        raise InvalidArgument("read JSON", where, f"{part} holds a NUL or is not Unicode")


_KINDS: Final[dict[type, str]] = {dict: "object", list: "list", str: "text"}


def _is_text(value: str) -> bool:
    """Half a surrogate pair, which JSON can say, is no character of any file's name."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in value


def check_process(process: Mapping[str, Any], where: str) -> None:
    """:raises InvalidArgument: an OCI Process without arguments or an absolute cwd"""
    args = process.get("args")
    if not isinstance(args, list) or not all(isinstance(arg, str) for arg in args):
        raise InvalidArgument("read process", where, "args is no list of strings")
    if not args:
        hint = "give it a command, or an image with an entry point"
        raise InvalidArgument("read process", where, "args is empty: there is nothing to run", hint=hint)
    env = process.get("env") or []
    if not isinstance(env, list) or not all(isinstance(item, str) for item in env):
        raise InvalidArgument("read process", where, "env is no list of strings")
    if not str(process.get("cwd", "")).startswith("/"):
        raise InvalidArgument("read process", where, f"cwd {process.get('cwd')!r} is not absolute")


def parse_process(data: bytes, where: str) -> dict[str, Any]:
    """Read an Exec's process: JSON, whatever its type URL says (`containerd.md` §2.4)."""
    try:
        process = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument("read process", where, f"not JSON: {error}") from error
    if not isinstance(process, dict):
        raise InvalidArgument("read process", where, "not an object")
    check_process(process, where)
    return process


def annotations(spec: Mapping[str, Any]) -> dict[str, str]:
    return {str(key): str(value) for key, value in (spec.get("annotations") or {}).items()}


def kind(spec: Mapping[str, Any]) -> Kind:
    """:raises InvalidArgument: a container type nobody knows"""
    notes = annotations(spec)
    for key, kinds in _KIND_KEYS:
        if key in notes:
            if notes[key] not in kinds:
                raise InvalidArgument(
                    "read config.json", key, f"unknown container type {notes[key]!r}", hint=f"one of {', '.join(kinds)}"
                )
            return kinds[notes[key]]
    return Kind.SINGLE


def namespaces(spec: Mapping[str, Any]) -> dict[str, str]:
    """Type to path of every namespace the spec lists; an empty path means a new one."""
    listed = (spec.get("linux") or {}).get("namespaces") or ()
    return {str(item.get("type", "")): str(item.get("path") or "") for item in listed}


def shares_pod_pid_namespace(spec: Mapping[str, Any]) -> bool:
    """A pid namespace with a path is the pod's shared one (`kata.md` §3.4)."""
    return bool(namespaces(spec).get("pid"))


def dns(spec: Mapping[str, Any]) -> tuple[str, ...]:
    """The lines of the file that is mounted at /etc/resolv.conf, as Kata sends them."""
    for mount in spec.get("mounts") or ():
        if mount.get("destination") == "/etc/resolv.conf":
            try:
                text = Path(str(mount.get("source", ""))).read_text(errors="replace")
            except OSError:
                return ()
            return tuple(text.splitlines()[:64])
    return ()


def for_guest(spec: Mapping[str, Any], container_id: str, plan: storage.Plan, *, seccomp: bool) -> dict[str, Any]:
    """The spec as the agent gets it: guest paths, the guest's namespaces and devices, no host identity.

    :raises Unimplemented: it asks for a user namespace's id mapping, which the guest cannot give, or for hooks
    """
    guest = dict(spec)
    _refuse_hooks(guest.pop("hooks", None) or {}, container_id)
    guest["root"] = {**(spec.get("root") or {}), "path": plan.guest_rootfs}
    guest["mounts"] = list(plan.mounts)
    if spec.get("process") is not None:
        guest["process"] = process_for_guest(spec["process"])
    guest["linux"] = _linux(spec.get("linux") or {}, container_id, seccomp=seccomp)
    if domain := guest.pop("domainname", None):
        guest["linux"]["sysctl"] = {**(guest["linux"].get("sysctl") or {}), "kernel.domainname": str(domain)}
    return guest


def _refuse_hooks(hooks: Mapping[str, Any], container_id: str) -> None:
    """They are programs of the host (`kata.md` §10.1), which nobody runs here."""
    if named := sorted(str(kind) for kind, listed in hooks.items() if listed):
        raise Unimplemented("create container", container_id, f"hooks ({', '.join(named)})", hint="run it without")


def process_for_guest(process: Mapping[str, Any]) -> dict[str, Any]:
    """Labels of the host's security modules mean nothing in the guest; everything else is kept."""
    return {key: value for key, value in process.items() if key not in ("apparmorProfile", "selinuxLabel")}


def _linux(linux: Mapping[str, Any], container_id: str, *, seccomp: bool) -> dict[str, Any]:
    if linux.get("uidMappings") or linux.get("gidMappings"):
        raise Unimplemented("create container", container_id, "id mappings of a user namespace", hint="run it without")
    guest = {key: value for key, value in linux.items() if key not in ("mountLabel", "intelRdt", "timeOffsets")}
    guest["namespaces"] = [
        {"type": item.get("type")}
        for item in linux.get("namespaces") or ()
        if item.get("type") not in _GUEST_NAMESPACES and not (item.get("type") == "pid" and item.get("path"))
    ]
    guest["resources"] = resources_for_guest(linux.get("resources") or {})
    guest["cgroupsPath"] = cgroups_path(str(linux.get("cgroupsPath") or ""), container_id)
    if not seccomp:
        guest.pop("seccomp", None)
    return guest


def resources_for_guest(resources: Mapping[str, Any]) -> dict[str, Any]:
    """The host's CPU and memory node numbers mean nothing in the guest; limits do, and are kept."""
    guest = {key: value for key, value in resources.items() if key not in ("network", "rdma")}
    if cpu := resources.get("cpu"):
        guest["cpu"] = {key: value for key, value in cpu.items() if key not in ("cpus", "mems")}
    return guest


def unified(resources: Mapping[str, Any]) -> dict[str, Any]:
    """Files of the control group and what to write to them."""
    return dict(resources.get("unified") or {})


def changes(resources: Mapping[str, Any], settled: Mapping[str, Any]) -> dict[str, Any]:
    """An Update's resources without what its client only repeats from the container's spec; the agent could not be told it."""
    news = {name: value for name, value in unified(resources).items() if settled.get(name) != value}
    return {**resources, "unified": news}


def cgroups_path(path: str, container_id: str) -> str:
    """The container's cgroup in the guest, where there is no systemd: ``slice:prefix:name`` becomes a path."""
    slice_name, colon, rest = path.partition(":")
    if colon:
        prefix, _, name = rest.partition(":")
        return f"/{slice_name}/{prefix}-{name}.scope"
    return path or f"/{container_id}"


def host_cgroups_path(spec: Mapping[str, Any]) -> str:
    """The sandbox's control group as the host would have it; empty when none is named."""
    return str((spec.get("linux") or {}).get("cgroupsPath") or "")


def parse_resources(data: bytes, where: str) -> dict[str, Any]:
    """Read an Update's resources (OCI LinuxResources as JSON)."""
    try:
        resources = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument("read resources", where, f"not JSON: {error}") from error
    _check_shape(_RESOURCES, resources, where)
    return dict(resources)
