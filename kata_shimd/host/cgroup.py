"""The pod's control group on the host, with daemon, virtiofsd and QEMU in it: what the pod is allowed, all of it is allowed.

The limits are those of the group above, which the kubelet makes for the pod; none is set here. For `sandbox_cgroup_only`:
without that, everything stays in the group that containerd starts shims in. On a host of version 2 it is made once, on any other in
each hierarchy of version 1, as runc does.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from kata_shimd.errors import HostFailed, InvalidArgument
from kata_shimd.ledger import Kind, Ledger

#: Before the last element of the pod's own path, which is the sandbox container's, and Kata's name for the machine's.
_PREFIX: Final = "kata_"
_SLICE: Final = ".slice"
_MOUNTS: Final = Path("/proc/self/mountinfo")
_SELF: Final = Path("/proc/self/cgroup")
_STEP: Final = "make control group"


def make(ledger: Ledger, cgroups_path: str) -> tuple[Path, ...]:
    """Make the pod's group, or take it over from an earlier daemon, and move into it. A group above that is missing is made and
    stays, for it is the pods' in common.

    :param cgroups_path: the sandbox's `linux.cgroupsPath`
    :returns: its directory in every hierarchy; in each of them a process has to join
    :raises InvalidArgument: the path is none
    :raises HostFailed: the kernel would not have it
    """
    below = relative(cgroups_path)
    known = {record.fields.get("path") for record in ledger.state.live.values() if record.kind == Kind.CGROUP}
    groups = tuple(top / below for top in hierarchies(_MOUNTS.read_text()))
    for group in groups:
        try:
            _make_above(group.parent)
            if str(group) not in known:
                ledger.plan(Kind.CGROUP, path=str(group))
            _mkdir(group)
        except OSError as error:
            raise HostFailed(_STEP, str(group), error.strerror or "", hint="is it mounted read-only?") from error
    join(groups)
    return groups


def join(groups: Sequence[Path]) -> None:
    """Move this process in, with all its threads.

    :raises HostFailed: it is not taken in
    """
    for group in groups:
        try:
            (group / "cgroup.procs").write_text(str(os.getpid()))
        except OSError as error:
            raise HostFailed("join control group", str(group), error.strerror or "") from error


def current() -> tuple[Path, ...]:
    """The groups that this process is in, for something that is to be where we were."""
    return tuple(_current(_MOUNTS.read_text(), _SELF.read_text()))


def _current(mountinfo: str, own: str) -> Iterator[Path]:
    """Of each hierarchy that `hierarchies` has; what lies outside of what is mounted here is left out."""
    lines = [line.split(":", 2) for line in own.splitlines()]
    where = {name: path for _, names, path in lines for name in names.split(",")}
    tops = set(hierarchies(mountinfo))
    for line in mountinfo.splitlines():
        before, after = (half.split() for half in line.split(" - "))
        if Path(before[4]) in tops and after[0].startswith("cgroup"):
            options = after[-1].split(",") if after[0] == "cgroup" else [""]
            path = next((where[name] for name in options if name in where), "")
            if Path(path).is_relative_to(before[3]):
                yield Path(before[4]) / Path(path).relative_to(before[3])


def relative(cgroups_path: str) -> Path:
    """The group's place below the top of a hierarchy: a path as it is, ``slice:prefix:name`` as systemd would lay it out.

    :raises InvalidArgument: it is empty, or climbs
    """
    slice_name, colon, rest = cgroups_path.partition(":")
    parts = [*_slices(slice_name), rest.replace(":", "-") + ".scope"] if colon else cgroups_path.split("/")
    parts = [part for part in parts if part not in ("", ".")]
    if not parts or any(part == ".." or "/" in part for part in parts):
        raise InvalidArgument("place pod", "linux.cgroupsPath", f"{cgroups_path!r} names no control group")
    return Path(*parts[:-1], _PREFIX + parts[-1])


def _slices(name: str) -> Iterator[str]:
    """``a-b.slice`` lies in ``a.slice``; ``-.slice`` is the top."""
    words = name.removesuffix(_SLICE).split("-")
    if name.removesuffix(_SLICE) != "-":
        yield from ("-".join(words[:count]) + _SLICE for count in range(1, len(words) + 1))


def hierarchies(mountinfo: str) -> Iterator[Path]:
    """Where groups are made: in every hierarchy of version 1 that has a controller; in version 2's where that has them all."""
    halves = [(line.split(" - ")[0].split(), line.split(" - ")[1].split()) for line in mountinfo.splitlines()]
    mounts = [(Path(before[4]), after[0], after[-1].split(",")) for before, after in halves]
    old = {point: options for point, kind, options in mounts if kind == "cgroup"}
    if not old:
        yield from dict.fromkeys(point for point, kind, _ in mounts if kind == "cgroup2")
    yield from (point for point, options in old.items() if not any(one.startswith("name=") for one in options))


def _make_above(group: Path) -> None:
    """Also what is there without processors, as it is when nobody but a `mkdir` has made it: runc fills that in, too."""
    if not group.exists() or any(_empty(group)):
        _make_above(group.parent)
        _mkdir(group)


def _mkdir(group: Path) -> None:
    """A cpuset of version 1 begins without processors and memory, and takes nobody in before it has some."""
    group.mkdir(exist_ok=True)
    for name in _empty(group):
        (group / name).write_text((group.parent / name).read_text())


def _empty(group: Path) -> Iterator[str]:
    """Files of a cpuset of version 1 that have nothing in them, and may have what the group above has."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        ours, above = group / name, group.parent / name
        old = ours.exists() and above.exists() and not (group / "cgroup.controllers").exists()
        if old and not ours.read_text().strip():
            yield name
