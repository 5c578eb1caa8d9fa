"""Network as a Kubernetes node makes it: the real CNI plugins, called as containerd calls them, inside the private host.

A `Network` is a list of plugin configurations; a `Namespace` is a pod's, with what the plugins put into it. State of the plugins
lives below the host's own directory, so that no other session's addresses are in the way.
"""

import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from integration.harness.host import Host

PLUGINS: Final = Path("/usr/lib/cni")
VERSION: Final = "0.4.0"


def ip(host: Host, *words: str, netns: str = "") -> str:
    """``ip`` in the private host, or in one of its namespaces; what it printed."""
    enter = ["ip", "-netns", netns] if netns else ["ip"]
    done = host.run([*enter, *words])
    assert done.returncode == 0, (words, done.stderr.decode(errors="replace"))
    return done.stdout.decode()


def inside(host: Host, netns: str, *words: str) -> str:
    """Run a program in a namespace of the private host to its end; what it printed."""
    done = host.run(["ip", "netns", "exec", netns, *words])
    assert done.returncode == 0, (words, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))
    return done.stdout.decode()


@dataclass(frozen=True, slots=True)
class Network:
    """What the plugins are to do for each pod of it, in order; the name of the interface is the caller's."""

    name: str
    plugins: tuple[Mapping[str, Any], ...]

    def config(self, plugin: Mapping[str, Any]) -> dict[str, Any]:
        return {"cniVersion": VERSION, "name": self.name, **plugin}


def bridge(host: Host, name: str, *subnets: str, mtu: int = 1500, **more: Any) -> Network:
    """Pods on one bridge, which is their gateway; an address of each subnet for every pod."""
    ipam = {
        "type": "host-local",
        "dataDir": str(host.root / "cni"),
        "ranges": [[{"subnet": subnet}] for subnet in subnets],
        "routes": [{"dst": "::/0" if ":" in subnet else "0.0.0.0/0"} for subnet in subnets],
    }
    plugin = {"type": "bridge", "bridge": name, "isGateway": True, "hairpinMode": True, "mtu": mtu, "ipam": ipam}
    return Network(name, ({**plugin, **more},))


@dataclass(slots=True)
class Namespace:
    """A pod's network namespace and its interfaces."""

    host: Host
    name: str
    container_id: str = field(default_factory=lambda: secrets.token_hex(8))
    _added: list[tuple[Network, str, dict[str, Any]]] = field(default_factory=list)

    @property
    def path(self) -> Path:
        return Path("/run/netns", self.name)

    def add(self, network: Network, interface: str = "eth0", **arguments: Any) -> list[str]:
        """CNI ADD by each plugin of the network; the addresses that the pod got, with prefix."""
        result: dict[str, Any] = {}
        for plugin in network.plugins:
            config = network.config(plugin) | ({"prevResult": result} if result else {}) | arguments
            result = self._call("ADD", plugin["type"], interface, config)
        self._added.append((network, interface, result))
        return [address["address"] for address in result.get("ips", ())]

    def remove(self) -> None:
        """CNI DEL of everything, last first."""
        while self._added:
            network, interface, result = self._added.pop()
            for plugin in reversed(network.plugins):
                self._call("DEL", plugin["type"], interface, network.config(plugin) | {"prevResult": result})

    def _call(self, command: str, plugin: str, interface: str, config: Mapping[str, Any]) -> dict[str, Any]:
        env = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": self.container_id,
            "CNI_NETNS": str(self.path),
            "CNI_IFNAME": interface,
            "CNI_PATH": str(PLUGINS),
        }
        done = self.host.run([PLUGINS / plugin], env=env, input=json.dumps(config).encode())
        assert done.returncode == 0, (command, plugin, done.stdout.decode(), done.stderr.decode())
        return dict(json.loads(done.stdout)) if done.stdout.strip() else {}


@contextmanager
def namespace(host: Host, name: str, *networks: Network | tuple[Network, str]) -> Iterator[Namespace]:
    """A named namespace with a loopback that is up and an interface of each network: eth0, eth1 …"""
    ip(host, "netns", "add", name)
    made = Namespace(host, name)
    try:
        ip(host, "link", "set", "lo", "up", netns=name)
        for number, network in enumerate(networks):
            made.add(network, f"eth{number}") if isinstance(network, Network) else made.add(*network)
        yield made
    finally:
        made.remove()
        ip(host, "netns", "delete", name)


def words(spaces: Sequence[str | Path]) -> list[str]:
    """The options of ``ctr run`` for a namespace path."""
    return [word for space in spaces for word in ("--with-ns", f"network:{space}")]
