"""``kata-shimd`` as a user who may nothing: each verb answers, or says in one line what it may not and that root may."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

import kata_shimd

NOBODY: Final = 65534
HASH: Final = "0123456789abcdef0123"
WITHIN: Final = 120.0

Ask = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def open_place() -> Iterator[Path]:
    """Where anyone may look; pytest's own directories are root's."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        place = Path(directory)
        place.chmod(0o755)
        (place / "private").mkdir(mode=0o700)
        yield place


@pytest.fixture(scope="module")
def ask(open_place: Path) -> Ask:
    """Run the command as nobody, from a copy, since the checkout may lie where nobody gets; code, stdout and stderr."""
    source = Path(kata_shimd.__file__).parent
    shutil.copytree(source, open_place / "kata_shimd", ignore=shutil.ignore_patterns("__pycache__", "bin"))
    subprocess.run(["chmod", "-R", "a+rX", open_place / "kata_shimd"], check=True)

    def run(*words: str | Path) -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, "-m", "kata_shimd.cli", *words],
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
            cwd=open_place,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=WITHIN,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.mark.parametrize(
    "words",
    [
        ("ps", "--run-dir"),
        ("why", "a-pod", "--run-dir"),
        ("logs", "a-pod", "--run-dir"),
        ("attach", "a-pod", "--run-dir"),
        ("qmp", "a-pod", "--run-dir"),
        ("guest", "ls", "--output"),
        ("guest", "show", "current", "--output"),
        ("guest", "rm", "current", "--output"),
        ("guest", "build", "--output"),
    ],
    ids=" ".join,
)
def test_a_directory_of_roots_is_not_taken_for_an_empty_one(ask: Ask, open_place: Path, words: tuple[str, ...]) -> None:
    code, said, complaint = ask(*words, open_place / "private" / "directory")
    assert (code, said) == (1, "")
    assert "Permission denied" in complaint and "run as root" in complaint
    assert len(complaint.splitlines()) == 1 or words[1:2] == ("build",), "a build says what it does as well"


def test_a_journal_of_roots_is_not_taken_for_an_empty_one(ask: Ask, open_place: Path) -> None:
    """A run directory that others may look into, as one that somebody else has made."""
    journal = open_place / "run" / "journal"
    journal.mkdir(parents=True)
    (journal / f"{HASH}.jsonl").write_text('{"t":1,"event":"daemon"}\n')
    (journal / f"{HASH}.jsonl").chmod(0o600)
    code, said, complaint = ask("why", HASH, "--run-dir", open_place / "run")
    assert (code, said) == (1, "")
    assert complaint.startswith("kata-shimd: read journal: ") and "Permission denied; run as root" in complaint


def test_check_says_what_is_missing(ask: Ask, open_place: Path) -> None:
    code, said, complaint = ask("check", "--run-dir", open_place / "private" / "run")
    assert (code, complaint) == (1, "")
    failed = [line.split()[1] for line in said.splitlines() if line.startswith("fail")]
    assert {"privileges", "run-directory"} <= set(failed), said
    assert "run as root" in said


def test_a_configuration_of_roots(ask: Ask, open_place: Path) -> None:
    file = open_place / "private" / "configuration.toml"
    code, said, complaint = ask("config", "check", file)
    assert code == 1
    assert f"{file}: cannot be read: Permission denied" in said + complaint
    assert f"{file.parent}/config.d: cannot be read: Permission denied\n" in said + complaint


@pytest.mark.parametrize("words", [("version",), ("config", "show")], ids=" ".join)
def test_what_needs_no_root(ask: Ask, words: tuple[str, ...]) -> None:
    code, said, _ = ask(*words)
    assert code == 0 and said
