"""``kata-shimd config``: the verb of `kata_shimd.config.cli`, with what only a composition root may read."""

import argparse
import os
from pathlib import Path
from typing import Any

from kata_shimd.config import cli
from kata_shimd.vm import accel


def add_parser(subparsers: Any) -> None:
    cli.add_parser(subparsers)


def run(args: argparse.Namespace) -> int:
    return cli.run(args, env_path=env_path(), kvm_obstacle=lambda: accel.kvm_obstacle(accel.Host()))


def env_path() -> Path | None:
    """The file that KATA_CONF_FILE names, as for a pod."""
    value = os.environ.get("KATA_CONF_FILE")
    return Path(value) if value else None
