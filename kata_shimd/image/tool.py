"""Runs the programs of the distribution that a build needs. No shell; what a program says when it fails is in the error."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from kata_shimd.errors import HostFailed, NotFound

#: Which package has the program, for the hint.
PACKAGES = {
    "apt-cache": "apt",
    "apt-get": "apt",
    "dpkg-deb": "dpkg",
    "lz4": "lz4",
    "mksquashfs": "squashfs-tools",
    "zstd": "zstd",
}
#: Messages are compared by nobody, but outputs are: no translation, no local time, no user configuration of the tools.
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "TZ": "UTC", "HOME": "/nonexistent"}
#: Of a failed program's stderr, this many last lines are told.
TOLD_LINES = 3


def require(name: str) -> str:
    """The program's path. Raises NotFound with the package to install."""
    if (path := shutil.which(name, path=ENVIRONMENT["PATH"])) is None:
        package = PACKAGES.get(name, name)
        raise NotFound("find program", name, "not installed", hint=f"apt-get install {package}")
    return path


def run(
    step: str,
    obj: str,
    argv: Sequence[str],
    *,
    data: bytes = b"",
    cwd: Path | None = None,
    codes: Sequence[int] = (0,),
    hint: str = "",
) -> bytes:
    """Runs argv with ``data`` as its stdin and returns its stdout. ``step`` and ``obj`` name what it is for.

    Raises NotFound when the program is missing, HostFailed when it ends with another code than ``codes``.
    """
    command = [require(argv[0]), *argv[1:]]
    done = subprocess.run(command, input=data, capture_output=True, check=False, cwd=cwd, env=_environment())
    if done.returncode not in codes:
        said = done.stderr.decode(errors="replace").strip().splitlines()[-TOLD_LINES:]
        cause = " / ".join([f"{argv[0]} exited with {done.returncode}", *said])
        raise HostFailed(step, obj, cause, hint=hint)
    return done.stdout


def version_line(*argv: str) -> str:
    """First line of what ``argv`` prints about itself; some exit with 1 after it."""
    done = subprocess.run(
        [require(argv[0]), *argv[1:]], capture_output=True, check=False, env=_environment(), timeout=10
    )
    return next(iter((done.stdout or done.stderr).decode(errors="replace").splitlines()), "").strip()


def _environment() -> dict[str, str]:
    proxies = {
        key: value for key, value in os.environ.items() if key.lower() in {"http_proxy", "https_proxy", "no_proxy"}
    }
    return ENVIRONMENT | proxies
