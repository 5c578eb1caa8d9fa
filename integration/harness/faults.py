"""Runtime handlers of a node, and those among them of which every pod fails: each at a point of its own, chosen pod by pod.

A handler has a network of its own (what its last CNI plugin does is the fault), a configuration of its own, or a type of its
own, whose shim is our launcher behind a script: a fault is injected into the daemons that it starts, or what containerd asks
for is changed into what it would never ask for.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

KATA_TYPE: Final = "io.containerd.kata.v2"
#: Kata's default leaves seccomp to the machine's border; a node that honours Kubernetes' profiles says this.
KATA: Final = """\
[runtime]
disable_guest_seccomp = false
[shimd]
guest_dir = "{guest}"
"""
#: A kernel that finds nothing to run: it panics, deep in the machine's boot.
_NO_INIT: Final = """\
[hypervisor.qemu]
kernel_params = "rdinit=/no/such/init"
"""


@dataclass(frozen=True, slots=True)
class Network:
    """A CNI chain: the node's bridge, with addresses or without, and these plugins after it."""

    plugins: tuple[str, ...] = ()
    addresses: bool = True


@dataclass(frozen=True, slots=True)
class Handler:
    """A runtime handler. ``config`` is a configuration file's text; ``network`` is the node's own where there is none."""

    type: str = KATA_TYPE
    network: Network | None = None
    config: str = ""


NO_ADDRESS: Final = "no-address"
LOST_ADDRESS: Final = "lost-address"
LOST_NETNS: Final = "lost-netns"
CNI_FAILS: Final = "cni-fails"
NO_INIT: Final = "no-init"
DIES: Final = "dies"
FULL: Final = "full"
ODD_TYPE: Final = "odd-type"
OTHER_POD: Final = "other-pod"
NO_ARGS: Final = "no-args"


def _behind_a_script(name: str) -> Handler:
    return Handler(type=f"io.containerd.{name.replace('-', '')}.v2", config=KATA)


HANDLERS: Final[Mapping[str, Handler]] = {
    NO_ADDRESS: Handler(network=Network(addresses=False), config=KATA),
    LOST_ADDRESS: Handler(network=Network(("lost-address",)), config=KATA),
    LOST_NETNS: Handler(network=Network(("lost-netns",)), config=KATA),
    CNI_FAILS: Handler(network=Network(("cni-fails",)), config=KATA),
    NO_INIT: Handler(config=KATA + _NO_INIT),
    **{name: _behind_a_script(name) for name in (DIES, FULL, ODD_TYPE, OTHER_POD, NO_ARGS)},
}
#: Lines of the ledger that a daemon has written (`integration/cri/test_failed_creates.py` visits them one by one) when QEMU runs,
#: and when it writes the first one after the guest has answered.
_BOOTING, _ANSWERED = 16, 17
#: What those lines are about, for each fate of a pod (`integration/cri/test_pods_at_once.py`): QEMU's pid, and the container's
#: directory.
STEPS: Final = {"daemon_dies_while_it_boots": "made 12", "full_disk_after_the_boot": "plan 13 dir"}
#: The launcher's environment.
_INJECTED: Final = {
    DIES: f"KATA_SHIMD_DIE_AT=daemon:{_BOOTING}",
    FULL: f"KATA_SHIMD_FAIL_AT=daemon:{_ANSWERED}",
}
_KEY: Final = "io.kubernetes.cri."
#: What sed does to the bundle's config.json before the launcher is started. Each names whose bundle it is for.
_EDITS: Final = {
    ODD_TYPE: f'/"{_KEY}container-type":"sandbox"/s/"{_KEY}container-type":"sandbox"/"{_KEY}container-type":"pod"/',
    OTHER_POD: f'/"{_KEY}container-type":"container"/s/"{_KEY}sandbox-id":"[^"]*"/"{_KEY}sandbox-id":"{{pod_id}}"/',
    NO_ARGS: f'/"{_KEY}container-type":"container"/s/"args":\\[[^]]*\\]/"args":[]/',
}
_SHIM: Final = """\
#!/bin/sh
case " $* " in *" start "*) [ ! -e {edit} ] || sed -i -f {edit} config.json ;; esac
{env} exec containerd-shim-kata-v2 "$@"
"""
#: A CNI plugin that is last of its chain. Its name says what it does to a pod; to take a pod away it does nothing.
_PLUGIN: Final = """\
#!{python} -IS
import json, os, subprocess, sys

def lost_address(netns):
    for family in "-4", "-6":
        subprocess.run(["nsenter", f"--net={{netns}}", "ip", family, "addr", "flush", "dev", "eth0", "scope", "global"], check=True)

def lost_netns(netns):
    subprocess.run(["umount", netns], check=True)
    os.unlink(netns)

def cni_fails(netns):
    print(json.dumps({{"cniVersion": "1.0.0", "code": 100, "msg": "the switch has no port left"}}))
    sys.exit(1)

given = json.load(sys.stdin)
if os.environ["CNI_COMMAND"] == "ADD":
    globals()[os.path.basename(sys.argv[0]).replace("-", "_")](os.environ["CNI_NETNS"])
    print(json.dumps(given["prevResult"]))
elif os.environ["CNI_COMMAND"] == "VERSION":
    print(json.dumps({{"cniVersion": "1.0.0", "supportedVersions": ["1.0.0"]}}))
"""


def write_programs(home: Path, plugins: Path) -> None:
    """``home/cni``: the plugins of CNI that are installed, and ours. ``home/bin``: the shims with faults."""
    for directory in ("cni", "bin"):
        (home / directory).mkdir()
    for plugin in plugins.iterdir():
        (home / "cni" / plugin.name).symlink_to(plugin)
    for handler in HANDLERS.values():
        for name in handler.network.plugins if handler.network else ():
            _write(home / "cni" / name, _PLUGIN.format(python=sys.executable))
    for name in (*_INJECTED, *_EDITS):
        program = f"containerd-shim-{name.replace('-', '')}-v2"
        _write(home / "bin" / program, _SHIM.format(edit=_edit(home, name), env=_INJECTED.get(name, "")))
    for name in (ODD_TYPE, NO_ARGS):
        _edit(home, name).write_text(_EDITS[name])


def lead_to(home: Path, pod_id: str) -> None:
    """From now on the containers of `OTHER_POD` say that they are of this pod."""
    _edit(home, OTHER_POD).write_text(_EDITS[OTHER_POD].format(pod_id=pod_id))


def _edit(home: Path, name: str) -> Path:
    return home / f"{name}.sed"


def _write(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)
