"""The leak check: what is there after a test that was not there before it.

Each probe lists one kind of thing as sentences; a leak is a sentence that is new. Teardown is asynchronous, so new things get a
bounded time to go, and whatever is still new then is reported, kind by kind.

Not leaks, each for a reason: ``RUN/journal``, kept on purpose; the cgroup named by the containerd namespace alone, which all
its pods share and every runtime leaves; containerd's unnamed descriptors up to `STEADY_FDS`, because its connections come and
go (named ones, to a FIFO, socket or file of a container, are leaks one by one).
"""

import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from integration.harness import pods, process
from integration.harness.containerd import Containerd
from integration.harness.host import Host
from integration.harness.scale import SCALE
from integration.harness.waiting import TooLate, eventually

#: More unnamed descriptors than this are a leak of containerd's connections to shims.
STEADY_FDS: Final = 48
#: Where the CRI plugin keeps its pods and containers, below containerd's root and its state.
CRI: Final = "io.containerd.grpc.v1.cri"
#: Time that an asynchronous teardown may take after the client has its answer.
PATIENCE: Final = 10.0 * SCALE


@dataclass(frozen=True, slots=True)
class Scene:
    """What is looked at. ``tag`` stands in every name that ends up in global tables (the containerd namespace)."""

    host: Host
    tag: str
    containerd: Containerd | None = None


Snapshot = Mapping[str, frozenset[str]]


def snapshot(scene: Scene) -> Snapshot:
    """Everything that is there now, by kind."""
    process.reap_orphans()
    return {kind: frozenset(probe(scene)) for kind, probe in PROBES.items()}


def new_things(before: Snapshot, after: Snapshot) -> dict[str, list[str]]:
    return {kind: sorted(after[kind] - before[kind]) for kind in after if after[kind] - before[kind]}


def await_no_leak(scene: Scene, before: Snapshot, *, within: float = PATIENCE) -> dict[str, list[str]]:
    """Give new things time to go; what stayed, by kind. Empty is good. A maker of a template is the node's and ends by itself; what
    it lives on is looked at when it has.
    """
    with suppress(TooLate):
        eventually("no template being made", lambda: not pods.making_templates(), within=4 * PATIENCE)
    with suppress(TooLate):
        eventually("everything made by the test gone", lambda: not new_things(before, snapshot(scene)), within=within)
    return new_things(before, snapshot(scene))


def report(leaked: Mapping[str, list[str]]) -> str:
    return "\n".join(f"leaked {kind}: {thing}" for kind, things in leaked.items() for thing in things)


def _processes(scene: Scene) -> Iterator[str]:
    """All descendants of ours but containerd, which a test may restart; zombies count when somebody else forgot to reap them."""
    ignored = scene.containerd.pid if scene.containerd else 0
    for found in process.descendants():
        if found.pid == ignored:
            continue
        state, parent = found.stat() or ("X", 0)
        if state != "X" and not (state == "Z" and parent == os.getpid()):
            zombie = ", zombie" if state == "Z" else ""
            yield f"{found.pid} (started {found.start}{zombie}): {found.command()}"


def _mounts(scene: Scene) -> Iterator[str]:
    """Of the private host, of every other mount namespace a descendant lives in, and of ours below the private root."""
    inside = process.find(scene.host.pid)
    own = process.find(os.getpid())
    assert inside is not None and own is not None
    spaces = {found.namespace("mnt"): found for found in [*process.descendants(), inside]}
    spaces.pop("", None)
    spaces.pop(own.namespace("mnt"), None)
    for name, found in spaces.items():
        place = "host" if name == inside.namespace("mnt") else name
        yield from (f"{point} ({source}) in {place}" for point, source in _mount_table(found.pid))
    mine = ((point, source) for point, source in _mount_table(own.pid) if _is_ours(scene, point, source))
    yield from (f"{point} ({source}) outside the private host" for point, source in mine)


def _mount_table(pid: int) -> Iterator[tuple[str, str]]:
    with suppress(OSError):
        for line in Path("/proc", str(pid), "mountinfo").read_text().splitlines():
            fields, _, tail = line.partition(" - ")
            kind, source = tail.split()[:2]
            yield fields.split()[4], f"{kind} {source}"


def _is_ours(scene: Scene, *texts: str) -> bool:
    return any(str(scene.host.root) in text or scene.tag in text for text in texts)


def _links(scene: Scene) -> Iterator[str]:
    """Links and traffic control of the private host, of its named network namespaces, and of surviving processes' ones."""
    pids = {found.namespace("net"): found.pid for found in process.descendants()}
    inside, own = process.find(scene.host.pid), process.find(os.getpid())
    assert inside is not None and own is not None
    for name in ("", inside.namespace("net"), own.namespace("net")):
        pids.pop(name, None)
    yield from _links_of(scene, "host", [])
    for file in _entries(scene.host.inside / "run/netns"):
        yield from _links_of(scene, file.name, ["nsenter", f"--net=/run/netns/{file.name}"])
    for name, pid in pids.items():
        yield from _links_of(scene, name, ["nsenter", f"--net=/proc/{pid}/ns/net"])


def _links_of(scene: Scene, place: str, enter: list[str]) -> Iterator[str]:
    links = scene.host.run([*enter, "ip", "-json", "link", "show"])
    if links.returncode == 0:
        for link in json.loads(links.stdout or b"[]"):
            yield f"link {link['ifname']} (index {link['ifindex']}) in {place}"
    control = scene.host.run([*enter, "tc", "qdisc", "show"])
    if control.returncode == 0:
        yield from (f"{' '.join(line.split())} in {place}" for line in control.stdout.decode().splitlines())


def _netns(scene: Scene) -> Iterator[str]:
    yield from (f"/run/netns/{file.name}" for file in _entries(scene.host.inside / "run/netns"))


def _cgroups(scene: Scene) -> Iterator[str]:
    """In every hierarchy, version 1 and 2, what bears our tag or the name of one of our pods."""
    names = (scene.tag, *(file.stem for file in _entries(scene.host.run_dir / "journal")))
    for top, directories, _ in os.walk("/sys/fs/cgroup"):
        for name in directories:
            path = f"{top}/{name}"
            if name != scene.tag and any(ours in path for ours in names):
                yield path


def _descriptors(scene: Scene) -> Iterator[str]:
    """containerd's: named ones below our directories one by one, unnamed ones by number beyond the steady state."""
    if scene.containerd is None:
        return
    unnamed = 0
    for entry in _entries(Path("/proc", str(scene.containerd.pid), "fd")):
        with suppress(OSError):
            target = str(entry.readlink())
            if target.startswith("/"):
                if scene.tag in target or "/fifo/" in target or f"/{CRI}/" in target:
                    yield f"containerd holds {target}"
            else:
                unnamed += 1
    yield from (f"containerd's unnamed descriptor number {number}" for number in range(STEADY_FDS, unnamed))


def _sockets(scene: Scene) -> Iterator[str]:
    """Unix sockets with a name in the private network namespace, and socket files below the private root."""
    table = Path("/proc", str(scene.host.pid), "net/unix").read_text().splitlines()[1:]
    named = {fields[7] for line in table if len(fields := line.split()) > 7}
    yield from (f"open socket {name}" for name in named)
    for top, _, files in os.walk(scene.host.root):
        for file in files:
            with suppress(OSError):
                if stat.S_ISSOCK(os.lstat(f"{top}/{file}").st_mode):
                    yield f"socket file {top}/{file}"


def _directories(scene: Scene) -> Iterator[str]:
    """State of pods, bundles, FIFOs, shared memory: places that must be as empty as before."""
    host = scene.host
    places = [host.run_dir / name for name in ("pods", "locks", "uids")]
    places.append(host.inside / "dev/shm")
    places += [
        host.inside / "run" / name for name in ("containerd", "containerd/s", "containerd/fifo", "runc", "kata-shimd")
    ]
    if scene.containerd is not None:
        task = f"io.containerd.runtime.v2.task/{scene.tag}"
        places += [scene.containerd.state / task, scene.containerd.root / task]
        places.append(host.inside / "run/containerd/runc" / scene.tag)
        homes = (scene.containerd.state / CRI, scene.containerd.root / CRI)
        places += [home / kind for home in homes for kind in ("sandboxes", "containers")]
        places += [host.inside / "var/lib/cni/results", *(scene.containerd.home / "ipam").glob("*")]
    # These three are made once, by the first container, and stay.
    kept = {host.inside / "run/containerd" / name for name in ("s", "fifo", "runc")}
    kept.add(host.inside / "run/containerd/io.containerd.runtime.v2.task")
    # Notes of the allocator: the lock, and where it goes on.
    if scene.containerd is not None:
        kept |= {
            file for file in (scene.containerd.home / "ipam").glob("*/*") if file.name.startswith(("lock", "last"))
        }
    yield from (str(entry) for place in places for entry in _entries(place) if entry not in kept)


def _entries(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


PROBES: Final[Mapping[str, Callable[[Scene], Iterator[str]]]] = {
    "process": _processes,
    "mount": _mounts,
    "link": _links,
    "netns": _netns,
    "cgroup": _cgroups,
    "descriptor": _descriptors,
    "socket": _sockets,
    "directory": _directories,
}


def forget_namespace(scene: Scene) -> None:
    """Remove the shared cgroups that are no leak of any one test, at the end of a session."""
    for top, directories, _ in os.walk("/sys/fs/cgroup"):
        if scene.tag in directories:
            with suppress(OSError):
                Path(top, scene.tag).rmdir()
