"""Installations of earlier commits: the package and the launcher that their wheels have, made from git.

The guest's programs are left out, for a pod's guest is the host's whatever the daemon; and the libraries are those of the
installation under test, so a commit that asks for others is none of ours. A launcher whose sources are the present ones is not
compiled again, and one that was is kept.
"""

import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from integration.conftest import PREFIX
from integration.harness.install import REPOSITORY, Layout
from integration.keeper.installation import LAUNCHER, Installation

#: What of the tree decides which package a wheel has, and which launcher.
PACKAGE: Final = ("kata_shimd", ":(exclude,glob)kata_shimd/**/test_*.py", ":(exclude,glob)kata_shimd/**/conftest.py")
SOURCES: Final = ("launcher/src", "launcher/Cargo.toml")
#: A version without it cannot hand a pod on.
_HANDS_ON: Final = "kata_shimd/cli/upgrading.py"


class NoHistory(Exception):
    """Why this checkout has no earlier commit to upgrade from."""


def commits() -> Iterator[str]:
    """Earlier commits of this branch that can hand a pod on, with another package than the present one; the nearest first."""
    for commit in _git("rev-list", "--first-parent", "HEAD", "--", *PACKAGE).decode().split():
        if not _has(commit, _HANDS_ON):
            return
        if _differs(commit, PACKAGE) and _libraries(commit) == _libraries(None):
            yield commit


def previous() -> str:
    """The nearest one.

    :raises NoHistory: there is none
    """
    try:
        found = next(commits(), None)
        shallow = _git("rev-parse", "--is-shallow-repository").strip() == b"true"
    except (OSError, subprocess.CalledProcessError) as error:
        raise NoHistory("this is no checkout of git's") from error
    if found is None:
        raise NoHistory("this checkout is shallow" if shallow else "there is no earlier commit with the same libraries")
    return found


def described(commit: str) -> str:
    return _git("log", "-1", "--format=%h of %cs", commit).decode().strip()


def install(commit: str, prefix: Path) -> Installation:
    """``commit`` in a prefix of its own."""
    tree = prefix.with_name(f"{prefix.name}.tree")
    _extract(commit, tree, "kata_shimd", "launcher", "pyproject.toml")
    launcher = _launcher(commit, tree) if _differs(commit, SOURCES) else PREFIX / "bin" / LAUNCHER
    made = Installation.lay(prefix, tree / "kata_shimd", launcher)
    made.compile()
    shutil.rmtree(tree)
    return made


def _launcher(commit: str, tree: Path) -> Path:
    """Compiled with the flags of the wheel's, in a directory that knows the dependencies from the last time."""
    cache = Layout.from_environment().cache / "earlier"
    kept = cache / _git("rev-parse", f"{commit}:launcher").decode().strip()
    if not kept.exists():
        target = cache / "cargo"
        argv = ["cargo", "build", "--quiet", "--release", "--bin", LAUNCHER, "--target-dir", target]
        subprocess.run([*argv, "--manifest-path", tree / "launcher/Cargo.toml"], check=True)
        shutil.copy2(target / "release" / LAUNCHER, draft := kept.with_suffix(".new"))
        draft.replace(kept)
    return kept


def _extract(commit: str, tree: Path, *paths: str) -> None:
    tree.mkdir()
    subprocess.run(["tar", "--extract", "--directory", tree], input=_git("archive", commit, *paths), check=True)


def _libraries(commit: str | None) -> list[str]:
    name = "pyproject.toml"
    text = (REPOSITORY / name).read_bytes() if commit is None else _git("show", f"{commit}:{name}")
    dependencies: list[str] = tomllib.loads(text.decode())["project"]["dependencies"]
    return dependencies


def _has(commit: str, path: str) -> bool:
    return bool(_git("ls-tree", "--name-only", commit, path))


def _differs(commit: str, paths: tuple[str, ...]) -> bool:
    """From what lies here, committed or not: it is what is installed."""
    argv = ["git", "-C", REPOSITORY, "diff", "--quiet", commit, "--", *paths]
    return subprocess.run(argv, check=False).returncode != 0


def _git(*words: str) -> bytes:
    return subprocess.run(["git", "-C", REPOSITORY, *words], capture_output=True, check=True).stdout
