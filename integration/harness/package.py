"""Programs out of Debian packages that are not installed: some would start a service, some conflict with what is."""

import subprocess
from pathlib import Path

from integration.harness.steps import StepFailed


def unpacked(name: str, cache: Path, program: str) -> Path:
    """A program of the package, fetched through apt once and unpacked below ``cache``.

    :raises StepFailed: apt does not give it
    """
    home = cache / name
    found = home / program
    if not found.exists():
        home.mkdir(parents=True, exist_ok=True)
        for argv in (["apt-get", "download", name], ["sh", "-c", f"dpkg-deb --extract {name}_*.deb ."]):
            done = subprocess.run(argv, cwd=home, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise StepFailed(name, done.stderr.strip(), "run apt-get update, and see that apt's sources answer")
    return found
