"""What a result says it is of."""

import subprocess
from pathlib import Path

from integration.harness.install import WHEEL_SOURCES, source_hash
from integration.harness.revision import own, revision
from kata_shimd import __version__


def git(repository: Path, *words: str) -> str:
    who = ("-c", "user.name=n", "-c", "user.email=e@example.org")
    done = subprocess.run(["git", "-C", repository, *who, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_commit_and_what_was_changed_since(tmp_path: Path) -> None:
    """A file that the wheel is not made of, such as the result itself, changes nothing."""
    git(tmp_path, "init", "--quiet")
    (tmp_path / "pyproject.toml").write_text("one")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "one")
    commit = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "results.json").write_text("{}")
    assert commit.startswith(revision(tmp_path)) and len(revision(tmp_path)) >= 7
    revision.cache_clear()
    (tmp_path / "pyproject.toml").write_text("two")
    assert revision(tmp_path).endswith(", modified")
    (tmp_path / "pyproject.toml").write_text("one")
    assert revision(tmp_path).endswith(", modified"), "a long run keeps the state that it began with"


def test_without_git_the_sources_speak(tmp_path: Path) -> None:
    assert revision(tmp_path) == f"sources {source_hash(WHEEL_SOURCES)[:12]}"


def test_a_line_of_versions_has_both() -> None:
    assert own() == f"kata-shimd {__version__} ({revision()})"
