"""``kata-shimd check``: joins the checks with what only the VM's side knows."""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from kata_shimd import __version__, vmspec
from kata_shimd.cli import check_templates, systemd
from kata_shimd.cli.config import env_path
from kata_shimd.cli.output import FAILED, OK, add_output, add_run_dir
from kata_shimd.config.load import Examined, examine
from kata_shimd.debug import check, check_host, check_programs, check_systemd
from kata_shimd.debug.check import Answer, Check, Scene
from kata_shimd.vm import accel, virtiofsd

#: A program that is asked for its version and does not answer is broken.
ASK_SECONDS: Final = 20.0
_MAX_SAID: Final = 1 << 18

#: The devices of `vm.argv`; the last one only where the agent is reached over vsock.
DEVICES: Final = (
    "isa-serial",
    "pcie-root-port",
    "vhost-user-fs-pci",
    "virtconsole",
    "virtio-blk-pci",
    "virtio-net-pci",
    "virtio-rng-pci",
    "virtio-serial-pci",
    "virtserialport",
)
VSOCK_DEVICE: Final = "vhost-vsock-pci"

CHECKS: Final[dict[str, Check]] = {
    "privileges": check_host.privileges,
    "configuration": check_host.configuration,
    "accelerator": check_host.accelerator,
    "qemu": check_programs.qemu,
    "virtiofsd": check_programs.virtiofsd,
    "guest": check_programs.guest,
    "templates": check_templates.templates,
    "containerd": check_programs.containerd,
    "runtime": check_programs.runtime,
    "systemd": check_systemd.systemd,
    "cgroups": check_host.cgroups,
    "vsock": check_host.vsock,
    "devices": check_host.devices,
    "mounts": check_host.mounts,
    "run-directory": check_host.run_directory,
    "memory-free": check_host.memory,
    "descriptors": check_host.descriptors,
}


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("check", help="whether this host has everything a pod needs")
    parser.add_argument("--config", type=Path, metavar="FILE", help="instead of the first file where Kata looks")
    add_output(parser)
    add_run_dir(parser)


def run(args: argparse.Namespace) -> int:
    rows = check.run(_scene(args.config, args.run_dir), CHECKS)
    sys.stdout.write(check.as_json(rows) if args.output == "json" else check.as_table(rows))
    return FAILED if check.failed(rows) else OK


def _scene(config: Path | None, run_dir: Path) -> Scene:
    examined = examine(config.absolute() if config else None, b"", env_path(), {})
    transport = _transport(examined)
    return Scene(
        config=examined,
        run_dir=run_dir.absolute(),
        version=__version__,
        path=os.environ.get("PATH", os.defpath),
        ask=ask,
        accelerator=_accelerator,
        kvm_obstacle=lambda: accel.kvm_obstacle(accel.Host()),
        virtiofsd=lambda said: "C" if virtiofsd.dialect(said) is virtiofsd.Dialect.C else "Rust",
        transport=transport,
        unit=systemd.texts(Path(sys.executable).parent)[systemd.POD],
        devices=(*DEVICES, *([VSOCK_DEVICE] if transport == "vsock" else [])),
    )


def _transport(examined: Examined) -> str:
    if (config := examined.config) is None:
        return ""
    return vmspec.transport(config.shimd.agent_transport, own_guest=config.hypervisor.initrd is not None).value


def _accelerator(setting: str) -> tuple[str, str]:
    choice = accel.choose(accel.Setting(setting))
    return choice.accelerator.value, choice.why


def ask(argv: Sequence[str | Path]) -> Answer:
    """Run a program that prints something about itself; never raises for what it does."""
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=ASK_SECONDS, check=False, cwd="/"
        )
    except OSError as error:
        return Answer(None, error.strerror or str(error))
    except subprocess.TimeoutExpired:
        return Answer(None, f"no answer in {ASK_SECONDS:g} s")
    said = (done.stdout + done.stderr)[:_MAX_SAID].decode(errors="replace")
    return Answer(done.returncode, said)
