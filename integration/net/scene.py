"""One pod's network namespace without a pod, and a guest that takes what it is told."""

import asyncio
import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

from integration.conftest import PREFIX
from integration.harness import cni
from integration.harness.host import Host
from kata_shimd.ledger import NAME, Ledger
from kata_shimd.net.network import PodNetwork, Settings
from kata_shimd.pod.network import GuestNetwork, Interface, Neighbour, Nic, Route

LAUNCHER = PREFIX / "bin/containerd-shim-kata-v2"


class Guest:
    """Takes what the guest would be told, and the devices that would be plugged in."""

    def __init__(self) -> None:
        self.network = GuestNetwork()
        self.plugged: list[str] = []
        self.happened = asyncio.Event()

    async def update_interface(self, interface: Interface) -> None:
        self.network = replace(self.network, interfaces=(*self.network.interfaces, interface))
        self.happened.set()

    async def update_routes(self, routes: tuple[Route, ...]) -> None:
        self.network = replace(self.network, routes=routes)

    async def add_neighbours(self, neighbours: tuple[Neighbour, ...]) -> None:
        self.network = replace(self.network, neighbours=neighbours)

    async def plug_nic(self, nic: Nic) -> str:
        self.plugged.append(nic.id)
        return "10.0/00"

    async def unplug_nic(self, nic_id: str) -> None:
        self.plugged.remove(nic_id)
        self.happened.set()


class Scene:
    """One pod namespace, a pod directory with a ledger, and what the journal would say."""

    def __init__(self, host: Host, name: str, directory: Path) -> None:
        self.host, self.name = host, name
        self.pod = directory / "pod"
        self.pod.mkdir(mode=0o700)
        (self.pod / NAME).touch(mode=0o600)
        self.notes: list[tuple[str, dict[str, Any]]] = []
        self.failed = asyncio.Event()

    @property
    def path(self) -> Path:
        return self.host.inside / "run/netns" / self.name

    def ip(self, words: str) -> str:
        return cni.ip(self.host, *words.split(), netns=self.name)

    def links(self) -> list[dict[str, Any]]:
        return list(json.loads(self.ip("-json -details link show")))

    def state(self) -> tuple[Any, ...]:
        """What undoing has to restore: links, addresses, queueing disciplines."""
        kept = ("ifname", "ifindex", "address", "mtu", "promiscuity", "qdisc")
        links = [tuple(link.get(key) for key in kept) for link in self.links()]
        # Of a link that is filtered out an empty object is left.
        found = [link for link in json.loads(self.ip("-json addr show up")) if link]
        addresses = [(link["ifname"], [item["local"] for item in link["addr_info"]]) for link in found]
        return links, addresses, cni.inside(self.host, self.name, "tc", "qdisc", "show")

    async def open(self, **how: Any) -> PodNetwork:
        found = await PodNetwork.open(Settings(path=str(self.path), **how), Ledger(self.pod), LAUNCHER, self._note)
        assert found is not None
        return found

    def _note(self, event: str, **fields: Any) -> None:
        self.notes.append((event, fields))
        if event == "network-failed":
            self.failed.set()

    def undo(self) -> None:
        done = subprocess.run([LAUNCHER, "undo", self.pod], capture_output=True, timeout=30, check=False)
        assert (done.returncode, done.stderr) == (0, b"")
