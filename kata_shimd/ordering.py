"""How a template comes to be that a pod has missed: the pod's daemon orders it, and a maker of its own makes it.

The maker is the node's, not the pod's: on no pod's record, in the control group that shims are started in, and it outlives the pod
that has ordered it. It is `kata-shimd template build --order FILE`. It gives way to pods: it is nice, the first to go when memory
runs out, and makes nothing on a node that has not the memory of one more guest. Part of the composition, for both of its ends.
"""

import base64
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kata_shimd.config.load import Told
from kata_shimd.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from kata_shimd.host import process
from kata_shimd.host.process import Gate, Process
from kata_shimd.vm.template import key
from kata_shimd.vm.template.store import Store

#: How much a maker gives way.
NICE: Final = 10
OOM_SCORE: Final = 1000
#: So many templates are made unasked; a node whose pods have more machines than that is not served by templates.
MOST: Final = 8
#: What one takes of its tmpfs, in MiB: so much, and one of so many parts of the guest's memory for its tables of that. More than
#: was measured (docs/templates.md).
TAKES: Final = 80
TABLES: Final = 48
#: One of so many parts of that tmpfs is left to others: most often it is /run.
LEFT: Final = 4
#: What may change a pod's machine.
_OURS: Final = "io.katacontainers."
_MEMINFO: Final = Path("/proc/meminfo")
_MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Order:
    """The template that is to be made, and what the pod was told of its configuration, from which it follows."""

    key: str
    told: Told

    def dump(self) -> bytes:
        told = self.told
        said = {
            "key": self.key,
            "config_path": str(told.config_path) if told.config_path else None,
            "config_body": base64.b64encode(told.config_body).decode(),
            "env_path": str(told.env_path) if told.env_path else None,
            "annotations": ours(told.annotations),
        }
        return json.dumps(said).encode()

    @classmethod
    def parse(cls, raw: bytes) -> "Order":
        """:raises InvalidArgument: it is no order"""
        try:
            said = json.loads(raw)
            told = Told(
                config_path=_path(said["config_path"]),
                config_body=base64.b64decode(said["config_body"]),
                env_path=_path(said["env_path"]),
                annotations=said["annotations"],
            )
            return cls(said["key"], told)
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidArgument("read order", "", f"{type(error).__name__}: {error}") from error


def _path(said: Any) -> Path | None:
    return Path(said) if said else None


def ours(annotations: Mapping[str, str]) -> dict[str, str]:
    """Those of a pod's annotations that its machine may follow from."""
    return {name: value for name, value in annotations.items() if name.startswith(_OURS)}


def send(order: Order, run_dir: Path, launcher: Path, cgroups: tuple[Path, ...]) -> Process:
    """Start a maker. It is nobody's; it need not be waited for, but wants to be reaped.

    :param cgroups: where it is placed; empty leaves it where we are
    :raises HostFailed: it cannot be started
    """
    fd = os.memfd_create("template-order", os.MFD_CLOEXEC)
    try:
        os.write(fd, order.dump())
        words = ("template", "build", "--order", f"/dev/fd/{fd}", "--run-dir", str(run_dir))
        argv = (sys.executable, "-I", "-m", "kata_shimd.cli", *words)
        gate = Gate(launcher=launcher, cgroups=cgroups, oom_score_adj=OOM_SCORE)
        return process.release(gate, argv, what="template maker", pass_fds=(fd,))
    finally:
        os.close(fd)


def make_room(store: Store, memory_mib: int) -> None:
    """See that one more guest does not crowd out pods, and that there are not too many templates by now. Those that no pod can want
    any more are taken away.

    :raises FailedPrecondition: there are enough
    :raises ResourceExhausted: the node has not the memory, or the tmpfs not the room
    """
    found = store.list()
    stale = [each.key for each in found if each.problem or (each.depends is not None and not key.holds(each.depends))]
    for name in stale:
        store.remove(name)
    if (left := len(found) - len(stale)) >= MOST:
        hint = "remove some with `kata-shimd template rm`, or make this one with `kata-shimd template build`"
        raise FailedPrecondition("make template", "", f"{left} are there already", hint=hint)
    if (free := available()) < memory_mib * _MIB:
        raise ResourceExhausted(
            "make template", "", f"{free // _MIB} MiB are free, one more guest may take {memory_mib}"
        )
    if why := too_small(store, memory_mib):
        raise ResourceExhausted("make template", str(store.path), why, hint=LARGER)


#: What helps where a tmpfs is too small.
LARGER: Final = "set factory.template_path to a larger tmpfs, or factory.enable_template to false"


def too_small(store: Store, memory_mib: int) -> str:
    """Why the template of a guest with so much memory would crowd the tmpfs; empty when it would not."""
    free, size = (number // _MIB for number in store.room())
    if free - (takes := TAKES + memory_mib // TABLES) >= size // LEFT:
        return ""
    return f"of {size} MiB there {free} are free; a template may take {takes}, and a quarter is left to others"


def available() -> int:
    """Bytes of memory that may be used without anything being swapped out."""
    rows = (line.split() for line in _MEMINFO.read_text().splitlines())
    return next(int(row[1]) for row in rows if row[0] == "MemAvailable:") * 1024
