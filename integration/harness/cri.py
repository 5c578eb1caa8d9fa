"""A node as the kubelet sees it: a private containerd of either version with its CRI plugin, our handler, and a network of its own.

Pods get addresses from Debian's CNI plugins on a bridge inside the private host. Images are imported, or pulled from a registry on
loopback that stands for every registry there is.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from integration.harness import faults, gotools
from integration.harness.containerd import DISABLED, Containerd
from integration.harness.faults import KATA, Handler
from integration.harness.host import Host
from integration.harness.install import Layout
from integration.harness.pods import BOOTED, factory
from integration.harness.scale import SCALE
from integration.harness.waiting import eventually

#: Ours with a keeper: daemons may die.
KEPT: Final = "kept"
#: Ours whose pods are booted, never cloned.
COLD: Final = "cold"
#: The runtime handlers of the node: ours, runc's to prove the tests themselves, and ours of which every pod fails.
HANDLERS: Final[Mapping[str, Handler]] = {
    "kata": Handler("io.containerd.kata.v2", config=KATA),
    "runc": Handler("io.containerd.runc.v2"),
    KEPT: Handler(config=KATA + 'keeper = "launcher"\n'),
    COLD: Handler(config=KATA),
    **faults.HANDLERS,
}
#: Namespace of everything that the CRI plugin makes.
NAMESPACE: Final = "k8s.io"
PAUSE: Final = "registry.invalid/kata-shimd/pause:test"
BRIDGE: Final = "kt0"
SUBNETS: Final = ("10.88.0.0/16", "fd88::/64")
#: Where Debian's containernetworking-plugins are.
CNI_BIN: Final = Path("/usr/lib/cni")
REGISTRY: Final = "127.0.0.1:5000"


def _factory(name: str) -> str:
    """Pods that are to fail, do so at lines of a boot's ledger."""
    return BOOTED if name == COLD or name in faults.HANDLERS else factory()


@dataclass(frozen=True, slots=True)
class Release:
    """One version of containerd: its programs, and the names that its CRI plugin has in config.toml."""

    name: str
    program: str | Path
    client: str | Path
    config_version: int
    #: Plugin with the runtimes, plugin with the images, plugin that serves.
    runtime: str
    images: str
    #: Further tables, in TOML; ``{home}`` is the node's directory.
    more: str
    #: Whether plugins of NRI can come by a socket, which 1.6 has not yet.
    nri: bool = False
    #: Added to containerd's environment.
    env: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


_V1: Final = "io.containerd.grpc.v1.cri"


def debian() -> Release:
    """Debian 12's, 1.6.20."""
    more = f'[plugins."{_V1}"]\n  sandbox_image = "{PAUSE}"\n'
    return Release("1.6", "containerd", "ctr", 2, _V1, _V1, more)


def newest(layout: Layout) -> Release:
    """The newest, built from its Go module where that has not been done yet."""
    home = gotools.ensure(layout)[gotools.CONTAINERD.name]
    images = "io.containerd.cri.v1.images"
    more = (
        f'[plugins."{images}".pinned_images]\n  sandbox = "{PAUSE}"\n'
        '[plugins."io.containerd.nri.v1.nri"]\n  socket_path = "{home}/nri.sock"\n'
        '  plugin_path = "{home}/nri.d"\n  plugin_config_path = "{home}/nri.conf.d"\n'
    )
    return Release("2.4", home / "containerd", home / "ctr", 3, "io.containerd.cri.v1.runtime", images, more, nri=True)


def speaking_v3(release: Release) -> Release:
    """The same, with the Task API v3 between it and our daemons."""
    return replace(release, env={"KATA_SHIMD_REPLY": "json3"})


_CONFIG: Final = """\
version = {version}
root = "{home}/root"
state = "{home}/state"
disabled_plugins = [{disabled}]
[grpc]
  address = "{address}"
[debug]
  level = "{level}"
[plugins."{runtime}".cni]
  {bin_key} = {bin_value}
  conf_dir = "{home}/net.d"
[plugins."{runtime}".containerd]
  default_runtime_name = "runc"
{handlers}
[plugins."{images}".registry]
  config_path = "{home}/certs.d"
{more}
"""
_HANDLER: Final = """\
[plugins."{runtime}".containerd.runtimes.{name}]
  runtime_type = "{type}"
  privileged_without_host_devices = true
  pod_annotations = ["io.katacontainers.*"]
"""
_NETWORK: Final = '  cni_conf_dir = "{home}/{name}.d"\n'
#: Of our handlers alone: where the pods' configuration is.
_OPTIONS: Final = """\
  [plugins."{runtime}".containerd.runtimes.{name}.options]
    ConfigPath = "{home}/{name}.toml"
"""
GUEST: Final = Path(os.environ.get("KATA_SHIMD_GUEST", "/var/lib/kata-shimd/guest/current"))


class CriContainerd(Containerd):
    """containerd with the CRI plugin; the pods' network and the registry's stand-in are set up with it."""

    def __init__(self, host: Host, release: Release, *, level: str = "debug") -> None:
        self.release = release
        self.program, self.client = release.program, release.client
        super().__init__(host, level=level)
        faults.write_programs(self.home, CNI_BIN)
        write_network(self.home / "net.d", addresses(self.home / "ipam"))
        write_mirror(self.home / "certs.d")
        for name, handler in HANDLERS.items():
            if handler.config:
                (self.home / f"{name}.toml").write_text(handler.config.format(guest=GUEST) + _factory(name))
            if handler.network is not None:
                ipam = addresses(self.home / "ipam") if handler.network.addresses else {}
                write_network(self.home / f"{name}.d", ipam, *handler.network.plugins)

    def configuration(self, level: str) -> str:
        release = self.release
        handlers = [self._handler(name, handler) for name, handler in HANDLERS.items()]
        lists = release.config_version >= 3  # since 2.x the plugins' directories are a list
        return _CONFIG.format(
            version=release.config_version,
            home=self.home,
            address=self.address,
            level=level,
            disabled=", ".join(f'"{name}"' for name in DISABLED if name != _V1),
            runtime=release.runtime,
            bin_key="bin_dirs" if lists else "bin_dir",
            bin_value=f'["{self.home}/cni"]' if lists else f'"{self.home}/cni"',
            handlers="".join(handlers),
            images=release.images,
            more=release.more.format(home=self.home),
        )

    def _handler(self, name: str, handler: Handler) -> str:
        parts = [_HANDLER, _NETWORK if handler.network is not None else "", _OPTIONS if handler.config else ""]
        return "".join(parts).format(runtime=self.release.runtime, name=name, type=handler.type, home=self.home)

    def start(self, **env: str) -> None:
        """Start, and wait until the CRI plugin says that it and its network are ready."""
        path = f"{self.home}/bin:{self.host.env['PATH']}"
        super().start(**{"PATH": path, **self.release.env, **env})
        eventually("the CRI plugin", self._ready, within=20 * SCALE)

    def _ready(self) -> bool:
        # Until it has looked for networks once, the plugin refuses every pod.
        return "cni config load failed" not in self.log_from(0)[-2000:] and self._serves()

    def _serves(self) -> bool:
        """A plugin that is loaded still refuses every call until it has taken up what an earlier containerd left."""
        crictl = gotools.ensure(Layout.from_environment())[gotools.CRI_TOOLS.name] / "crictl"
        endpoint = f"unix://{self.address}"
        argv: list[str | Path] = [crictl, "--runtime-endpoint", endpoint, "--image-endpoint", endpoint, "info"]
        return self.host.run(argv).returncode == 0


def addresses(directory: Path) -> dict[str, object]:
    """Configuration of the allocator of addresses, which keeps its notes in ``directory``."""
    return {
        "type": "host-local",
        "dataDir": str(directory),
        "ranges": [[{"subnet": subnet}] for subnet in SUBNETS],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
    }


def write_network(directory: Path, ipam: Mapping[str, object], *more: str) -> None:
    """One CNI network: a bridge, its addresses, host ports, further plugins; loopback is containerd's own affair."""
    directory.mkdir()
    bridge = {"type": "bridge", "bridge": BRIDGE, "isGateway": bool(ipam), "hairpinMode": True, "ipam": ipam}
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    network = {
        "cniVersion": "1.0.0",
        "name": "kata-shimd-test",
        "plugins": [bridge, portmap, *({"type": name} for name in more)],
    }
    (directory / "10-test.conflist").write_text(json.dumps(network, indent=1))


def write_mirror(directory: Path) -> None:
    """Whatever registry an image is asked of, the one on loopback answers."""
    (directory / "_default").mkdir(parents=True)
    lines = f'server = "http://{REGISTRY}"\n[host."http://{REGISTRY}"]\n  capabilities = ["pull", "resolve"]\n'
    (directory / "_default/hosts.toml").write_text(lines)


def prepare(host: Host) -> None:
    """What a node has before its first pod: the bridge, forwarding, and a place for CNI's notes that is ours alone."""
    Path("/var/lib/cni").mkdir(parents=True, exist_ok=True)
    for argv in (
        ["mount", "-t", "tmpfs", "-o", "mode=700", "tmpfs", "/var/lib/cni"],
        # Without an address of its own it has its ports', and none when they have gone, which the plugin cannot set again.
        ["ip", "link", "add", BRIDGE, "address", "02:00:00:00:00:01", "type", "bridge"],
        ["ip", "link", "set", BRIDGE, "up"],
        ["sysctl", "-q", "-w", "net.ipv4.ip_forward=1"],
    ):
        done = host.run(argv)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(argv)}: {done.stderr.decode(errors='replace').strip()}")


def pod_config(name: str, **more: object) -> dict[str, object]:
    """A PodSandboxConfig as crictl reads it; ``more`` are further fields of it."""
    metadata = {"name": name, "namespace": "test", "uid": name, "attempt": 0}
    return {"metadata": metadata, "log_directory": "", "linux": {}, **more}


def container_config(name: str, image: str, command: Sequence[str], **more: object) -> dict[str, object]:
    """A ContainerConfig as crictl reads it."""
    return {"metadata": {"name": name, "attempt": 0}, "image": {"image": image}, "command": list(command), **more}


Config = Mapping[str, object]
