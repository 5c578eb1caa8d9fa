"""The OCI spec as JSON into the agent's mirror of it (`protos/kata/oci.proto`).

The mirror's fields are those of the JSON under other spellings, so one walk over the message classes converts everything:
``noNewPrivileges``, ``no_new_privileges`` and ``NoNewPrivileges`` are one name. What the mirror has no field for goes
in an annotation that our agent knows, or is refused unless a row below says why it may go: nothing is dropped in silence.
"""

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any, Final

from kata_shimd.api import agent
from kata_shimd.errors import InvalidArgument, Unimplemented

#: JSON names that differ by more than spelling.
_RENAMED: Final = {"ociversion": "version"}

#: What our agent takes by path from this annotation (guest/agent/src/oci/untold.rs); Kata's passes over it.
UNTOLD_ANNOTATION: Final = "io.kata-shimd.oci"
UNTOLD: Final = ("linux.resources.unified", "linux.seccomp.defaultErrnoRet", "process.user.umask")

#: What may be left out, by path: it means nothing in a VM, or holds there anyhow.
MAY_GO: Final = {
    "linux.seccomp.listenerPath": "the notification socket is the host's",
    "linux.seccomp.listenerMetadata": "the notification socket is the host's",
    "linux.resources.rdma": "the guest has no RDMA device",
    "linux.timeOffsets": "the guest has its own clocks",
    "linux.resources.memory.useHierarchy": "cgroup v2 is always hierarchical",
    "linux.resources.memory.checkBeforeUpdate": "a limit below what is in use makes the guest reclaim",
    "process.commandLine": "Windows only",
    "windows": "Windows only",
    "solaris": "Solaris only",
    "vm": "the VM is ours",
    "zos": "z/OS only",
}

#: What is the same as nothing, where that is not empty: the value that holds without it.
_DEFAULTS: Final = {"linux.personality": {"domain": "LINUX"}, "process.user.umask": 0o022}

#: In a device rule an absent number means "any"; the mirror has no absence, and says -1 (as Kata does).
_ABSENT_NUMBER: Final[dict[type, dict[str, int]]] = {agent.LinuxDeviceCgroup: {"major": -1, "minor": -1}}


def spec(value: Mapping[str, Any]) -> agent.Spec:
    """:raises InvalidArgument: a field has the wrong type. :raises Unimplemented: a field the guest cannot be told"""
    plain, untold = _part(value)
    given = _expect(dict, plain.get("annotations") or {}, "annotations")
    notes = {key: text for key, text in given.items() if key != UNTOLD_ANNOTATION}
    if untold:
        notes[UNTOLD_ANNOTATION] = json.dumps(untold)
    return typing.cast("agent.Spec", _convert(agent.Spec, {**plain, "annotations": notes}, ""))


def _part(value: Mapping[str, Any]) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """The spec without what goes by annotation, and that, by path."""
    untold: dict[str, Any] = {}
    for path in UNTOLD:
        value = _without(value, path.split("."), path, untold)
    return value, untold


def _without(value: Any, keys: list[str], path: str, untold: dict[str, Any]) -> Any:
    key, *rest = keys
    if not isinstance(value, Mapping) or value.get(key) is None:
        return value
    if rest:
        return {**value, key: _without(value[key], rest, path, untold)}
    if value[key] != {}:
        untold[path] = _check_untold(path, value[key])
    return {name: item for name, item in value.items() if name != key}


def _check_untold(path: str, item: Any) -> Any:
    if path.endswith("unified"):
        return {str(key): _expect(str, text, f"{path}.{key}") for key, text in _expect(dict, item, path).items()}
    return _expect(int, item, path)


def process(value: Mapping[str, Any]) -> agent.Process:
    return typing.cast("agent.Process", _convert(agent.Process, value, "process"))


def resources(value: Mapping[str, Any]) -> agent.LinuxResources:
    return typing.cast("agent.LinuxResources", _convert(agent.LinuxResources, value, "linux.resources"))


def _convert(cls: type, value: Any, path: str) -> Any:
    if not isinstance(value, Mapping):
        raise InvalidArgument("convert spec", path or "spec", f"an object was expected, not {type(value).__name__}")
    fields = _fields(cls)
    known: dict[str, Any] = dict(_ABSENT_NUMBER.get(cls, {}))
    for key, item in value.items():
        where = f"{path}.{key}" if path else str(key)
        folded = _fold(str(key))
        target = fields.get(_RENAMED.get(folded, folded))
        if item is None or where in MAY_GO or _DEFAULTS.get(where) == item:
            continue
        if target is None:
            _refuse(where, item)
            continue
        known[target[0]] = _value(target[1], item, where)
    return cls(**known)


def _refuse(where: str, item: Any) -> None:
    if item not in ({}, [], "", False, 0) or (where in UNTOLD and item != {}):  # a umask of 0 is not none
        raise Unimplemented("convert spec", where, "the guest's agent has no field for it", hint="leave it out")


def _value(kind: Any, item: Any, where: str) -> Any:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType or origin is typing.Union:
        return _value(next(arg for arg in args if arg is not type(None)), item, where)
    if origin is list:
        return [_value(args[0], part, f"{where}[{i}]") for i, part in enumerate(_expect(list, item, where))]
    if origin is dict:
        return {str(k): _value(args[1], v, f"{where}.{k}") for k, v in _expect(dict, item, where).items()}
    if dataclasses.is_dataclass(kind):
        return _convert(typing.cast(type, kind), item, where)
    return _expect(kind, item, where)


def _expect(kind: type, item: Any, where: str) -> Any:
    # True is an int in Python, but not in JSON.
    if not isinstance(item, kind) or (kind is int and isinstance(item, bool)):
        raise InvalidArgument("convert spec", where, f"{kind.__name__} was expected, not {type(item).__name__}")
    return item


@cache
def _fields(cls: type) -> dict[str, tuple[str, Any]]:
    hints = typing.get_type_hints(cls)
    return {_fold(f.name): (f.name, hints[f.name]) for f in dataclasses.fields(cls) if not f.name.startswith("_")}


def _fold(name: str) -> str:
    return name.replace("_", "").lower()
