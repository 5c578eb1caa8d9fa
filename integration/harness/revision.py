"""Which state of the project a result is of: results are kept for long, and the version stays the same for as long."""

import functools
import subprocess
from pathlib import Path
from typing import Final

from integration.harness.install import REPOSITORY, WHEEL_SOURCES, source_hash
from kata_shimd import __version__

#: How much of a hash is shown.
SHORT: Final = 12


def own() -> str:
    """For a line of versions: ``kata-shimd 0.1.0 (3eaf5fd5c61a)``."""
    return f"kata-shimd {__version__} ({revision()})"


@functools.cache
def revision(repository: Path = REPOSITORY) -> str:
    """The commit, ``modified`` if what the wheel is made of has changed since; without git a hash of those sources.

    Asked for once: a long run keeps the state that it began with.
    """
    commit = _git(repository, "rev-parse", f"--short={SHORT}", "HEAD").strip()
    if not commit:
        return f"sources {source_hash(WHEEL_SOURCES)[:SHORT]}"
    changed = _git(repository, "status", "--porcelain", "--", *WHEEL_SOURCES)
    return f"{commit}, modified" if changed else commit


def _git(repository: Path, *words: str) -> str:
    """What git says; nothing where there is no git, or no repository of its."""
    try:
        return subprocess.run(["git", "-C", repository, *words], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
