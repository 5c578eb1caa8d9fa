"""What a template depends on, and the name that follows from it.

A file counts as what the kernel says of it: place, size and times, the last of which nobody but root can set. That is stricter
than its content, and costs nothing when a pod starts.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from kata_shimd.errors import HostFailed
from kata_shimd.vm.argv import argv
from kata_shimd.vm.spec import ExtraMonitor, VmSpec, Wires

#: Of what lies on disk and of what the agent was asked for; raised whenever either changes.
FORMAT: Final = 2
LENGTH: Final = 20
#: Room for the shared directory, and for interfaces: all of them are plugged in.
EXTRA_PORTS: Final = 4
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")

#: What SMBIOS says to every clone.
_NO_UUID: Final = "00000000-0000-0000-0000-000000000000"
#: Numbers that stand for any.
_WIRES: Final = Wires(monitor=0, debug_monitor=0, console=0, agent=0, memory=0)


def original(spec: VmSpec) -> VmSpec:
    """The VM that the template of a pod with ``spec`` is made from: nothing in it is that pod's own."""
    return replace(
        spec,
        name="template",
        uuid=_NO_UUID,
        nics=(),
        extra_monitor=ExtraMonitor.NONE,
        root_ports=spec.root_ports + EXTRA_PORTS,
    )


def clone(spec: VmSpec) -> VmSpec:
    """The VM of a pod with ``spec`` that comes from that template."""
    return replace(original(spec), name=spec.name, uuid=spec.uuid, extra_monitor=spec.extra_monitor, incoming=True)


def inputs(spec: VmSpec) -> dict[str, object]:
    """Everything that a template of ``spec`` depends on, for people too.

    :raises HostFailed: a file is not there
    """
    files = {"qemu": spec.qemu, "kernel": spec.kernel, "initrd": spec.initrd, "image": spec.image}
    return {
        "format": FORMAT,
        "boot": _boot(),
        "files": {name: _file(path) for name, path in files.items() if path is not None},
        "argv": argv(original(spec), _WIRES),
    }


def holds(depends: Mapping[str, Any]) -> bool:
    """Whether what a template was made from is still what is there. If not, no pod can want it any more."""
    try:
        return depends["boot"] == _boot() and all(_file(Path(said[0])) == said for said in depends["files"].values())
    except (HostFailed, LookupError, TypeError):
        return False


def name(depends: dict[str, object]) -> str:
    """The name of a template with these inputs."""
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:LENGTH]


def _boot() -> str:
    """The host's, whose processor the guest has seen."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError as error:
        raise HostFailed("look for template", str(BOOT_ID), error.strerror or "") from error


def _file(path: Path) -> list[object]:
    try:
        status = path.stat()
    except OSError as error:
        raise HostFailed("look for template", str(path), error.strerror or "") from error
    return [str(path.resolve()), status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
