"""``kata-shimd systemd``: the units of this node. With the pods' template there, the launcher starts each daemon as a unit."""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from kata_shimd.cli.output import FAILED, OK
from kata_shimd.errors import HostFailed

DIRECTORY: Final = Path("/etc/systemd/system")
#: Where systemd runs as the host's first process (sd_booted(3)).
BOOTED: Final = Path("/run/systemd/system")
POD: Final = "kata-pod@.service"
ZYGOTE: Final = "kata-zygote.service"

_POD: Final = """\
# Made by `kata-shimd systemd install`, which writes it anew: change it with drop-ins (`systemctl edit kata-pod@.service`).
[Unit]
Description=Kata pod %i
# At shutdown pods end while containerd can still be told of it. A containerd that stops or starts by itself does not touch them.
After=containerd.service kata-zygote.service local-fs.target network.target
CollectMode=inactive-or-failed
# How many daemons may die is `keeper_deaths` and `keeper_seconds`; this is for a daemon that cannot even begin.
StartLimitIntervalSec=60
StartLimitBurst=200

[Service]
Type=notify
NotifyAccess=main
# The launcher adds a drop-in for each pod, with the directory, the slice and the launcher that are its own.
ExecStart={launcher} unit {run_dir}/pods/%i
ExecStopPost={launcher} unit-ended {run_dir}/pods/%i
Restart=on-failure
RestartSec=0
FileDescriptorStoreMax=4096
# The machine and its helpers outlive a daemon, and end with the pod: by the daemon's last act, or by ExecStopPost.
KillMode=process
TimeoutStartSec=90
TimeoutStopSec=90
# A daemon that hangs says where (daemon.stderr) and dies of SIGABRT at once; one that cannot even do that is killed.
TimeoutAbortSec=5
WatchdogSec=60
# One worse than containerd's.
OOMScoreAdjust=-998
Slice=kata.slice
TasksMax=infinity
"""

_ZYGOTE: Final = """\
# Made by `kata-shimd systemd install`.
[Unit]
Description=Kata pod daemons, forked warm
Before=containerd.service

[Service]
Type=notify
NotifyAccess=main
ExecStart={command} zygote --run-dir {run_dir}
Restart=always
OOMScoreAdjust=-998
TasksMax=infinity
# What it has forked is no part of it: each daemon moves to its pod's group.
KillMode=process

[Install]
WantedBy=multi-user.target
"""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "systemd",
        help="make pods units of systemd's on this node, or no longer",
        description="install: pods that are started from now on are units kata-pod@HASH.service; also lays down "
        "kata-zygote.service, which `systemctl enable --now kata-zygote` starts. remove: pods that are started from now on are "
        "not; those that run stay.",
    )
    parser.add_argument("act", choices=("install", "remove"))
    parser.add_argument("--directory", type=Path, default=DIRECTORY, metavar="DIR", help="of units (%(default)s)")


def run(args: argparse.Namespace) -> int:
    units = texts(Path(sys.executable).parent)
    for name, text in units.items():
        _write(args.directory / name, text) if args.act == "install" else _remove(args.directory / name)
    if not BOOTED.is_dir():
        print("kata-shimd: systemd does not run here; it will read this when it does", file=sys.stderr)
        return OK
    return OK if subprocess.run(["systemctl", "daemon-reload"], check=False).returncode == 0 else FAILED


def texts(bin_dir: Path, run_dir: Path = Path("/run/kata-shimd")) -> dict[str, str]:
    """Units by name, for the installation in ``bin_dir``."""
    launcher, command = bin_dir / "containerd-shim-kata-v2", bin_dir / "kata-shimd"
    return {
        POD: _POD.format(launcher=launcher, run_dir=run_dir),
        ZYGOTE: _ZYGOTE.format(command=command, run_dir=run_dir),
    }


def _write(path: Path, text: str) -> None:
    """systemd reads either the old file or the new."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(text)
        draft.replace(path)
    except OSError as error:
        raise HostFailed("install unit", str(path), error.strerror or str(error)) from error


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise HostFailed("remove unit", str(path), error.strerror or str(error)) from error
