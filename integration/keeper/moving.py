"""Running pods that move from one installation to another, and on, under everything that clients do at once (`load`).

On a node as it is for a user: containerd finds one launcher, behind a link, which is set when another version has been installed;
then ``kata-shimd upgrade --all`` of that version moves what runs.
"""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from integration.harness import image, leaks
from integration.harness.containerd import Containerd
from integration.harness.ctr import KATA, Ctr
from integration.harness.host import Host
from integration.harness.pods import BOOTED, Pod, pod_hash
from integration.harness.scale import SCALE
from integration.harness.waiting import eventually
from integration.keeper.installation import LAUNCHER, Installation
from integration.keeper.killing import Noticed
from integration.keeper.load import WITHIN, Load, Seen
from integration.keeper.setups import Keeper, Loop, Setup

#: Clients' calls of which at least one ends before each move, and one after it.
KINDS: Final = ("list", "exec", "stream")
#: What may be told of a pod that was moved; one that ended meanwhile is none.
GOOD: Final = {"upgraded", "current", "ended"}


@dataclass(slots=True)
class Journey:
    """What came of it: sentences, none of which is good, and for each move how many pods it was and how long it took."""

    seen: Seen
    moves: list[tuple[int, float]] = field(default_factory=list)


class Node:
    """A host, a containerd and a client of it; ``installed`` is what containerd finds."""

    def __init__(self, host: Host, containerd: Containerd, link: Path, config: Path) -> None:
        self.host, self._link = host, link
        self.ctr = Ctr(containerd, "moving", KATA, image.NAME, config)

    def set_installed(self, installation: Installation) -> None:
        draft = self._link.with_suffix(".new")
        draft.symlink_to(installation.launcher)
        draft.replace(self._link)

    def pod(self, name: str) -> Pod:
        address = str(self.ctr.containerd.address)
        return Pod(Path(self.host.run_dir), pod_hash(address, self.ctr.namespace, name))

    def scene(self) -> leaks.Scene:
        return leaks.Scene(self.host, self.ctr.namespace, self.ctr.containerd)


@contextmanager
def node(directory: Path, loop: Loop = Loop.UVLOOP) -> Iterator[Node]:
    """With pods that the launcher keeps. Complains of what is left at the end."""
    links, config, archive = directory / "links", directory / "configuration.toml", directory / "image.tar"
    links.mkdir()
    config.write_text(Setup(Keeper.LAUNCHER, loop).configuration() + BOOTED)
    image.write_image(archive)
    with Host([links]) as host, Containerd(host) as containerd:
        made = Node(host, containerd, links / LAUNCHER, config)
        made.ctr("image", "import", archive).ok()
        before = leaks.snapshot(made.scene())
        yield made
        left = leaks.await_no_leak(made.scene(), before)
        leaks.forget_namespace(made.scene())
        assert not left, leaks.report(left)


def travel(on: Node, name: str, stations: Sequence[Installation], *, size: int, seed: int = 1) -> Journey:
    """A pod of the first of ``stations``, and others that come and go, to each of the others in turn."""
    on.set_installed(stations[0])
    noticed = Noticed(on.ctr.containerd)
    load = _Load(on.ctr, name, on.pod, size=size, seed=seed)
    journey = Journey(load.seen)

    def move_all() -> None:
        assert _programs(on.pod(name)) == _wanted(stations[0]), "it is not of the installation that it is to leave"
        _one_more_of_each(load.seen)
        for station in stations[1:]:
            on.set_installed(station)
            journey.moves.append(_moved(on, name, station, load.seen.wrong))
            _one_more_of_each(load.seen)

    load.during(move_all)
    noticed.deletions = 1 + load.seen.calls.get("life", 0)
    load.seen.wrong += [f"containerd: {line}" for line in noticed.complaints()]
    return journey


class _Load(Load):
    def _kill(self, name: str) -> None:
        """Nobody is killed but for another version."""


def _one_more_of_each(seen: Seen) -> None:
    before = {kind: seen.calls.get(kind, 0) for kind in KINDS}
    for kind, count in before.items():
        eventually(f"another {kind}", lambda k=kind, n=count: seen.calls.get(k, 0) > n or seen.wrong, within=WITHIN)


def _moved(on: Node, name: str, station: Installation, wrong: list[str]) -> tuple[int, float]:
    begun = time.monotonic()
    done = station.command("upgrade", "--all", "-o", "json", "--run-dir", on.host.run_dir)
    seconds = time.monotonic() - begun
    outcomes = json.loads(done.stdout)["pods"] if done.stdout else []
    bad = [outcome for outcome in outcomes if outcome["result"] not in GOOD]
    if bad or done.returncode != 0:
        wrong.append(f"upgrade: {done.returncode} {bad} {done.stderr}"[:1000])
    pod = on.pod(name)
    eventually("the keeper's move", lambda: _programs(pod) == _wanted(station) or wrong, within=10 * SCALE)
    return sum(outcome["result"] == "upgraded" for outcome in outcomes), seconds


def _programs(pod: Pod) -> list[str]:
    """Of its daemon and its keeper."""
    found = [Path(f"/proc/{pod.process(what).pid}/cmdline").read_bytes() for what in ("daemon", "keeper")]
    return [words.split(b"\0")[0].decode() for words in found]


def _wanted(station: Installation) -> list[str]:
    return [str(station.python), str(station.launcher)]
