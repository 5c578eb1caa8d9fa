"""What a result was measured with: a line for pages that keep results."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

from integration.harness import revision
from kata_shimd.vm import accel


def line(containerd: str | Path = "containerd") -> str:
    """Today, and the versions of everything that a result depends on."""
    today, accelerator = datetime.now(UTC).date().isoformat(), accel.choose(accel.Setting.AUTO).accelerator
    said = [_first_line(*argv) for argv in ((str(containerd), "--version"), ("qemu-system-x86_64", "--version"))]
    own = f"{revision.own()}, Python {platform.python_version()}"
    return f"{today}: {own}, {', '.join(said)}, {accelerator}, {os.cpu_count()} CPUs"


def of_runc(containerd: str | Path) -> str:
    """The same of what is run with runc, where nothing of ours takes part."""
    said = [_first_line(str(containerd), "--version"), _first_line("runc", "--version")]
    return (
        f"{datetime.now(UTC).date().isoformat()}: {', '.join(said)}, Linux {platform.release()}, {os.cpu_count()} CPUs"
    )


def _first_line(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()[0].strip()
