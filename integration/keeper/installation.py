"""Another installation beside the one under test: the same code under another version's name, and spoiled in one way or another."""

import os
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from integration.conftest import PREFIX

LAUNCHER: Final = "containerd-shim-kata-v2"
_PACKAGE: Final = "kata_shimd"


@dataclass(frozen=True, slots=True)
class Installation:
    """A prefix with ``bin/python3``, a launcher, and a package of its own; the libraries are those of the one under test."""

    prefix: Path

    @classmethod
    def copy(cls, prefix: Path, version: str) -> "Installation":
        """The installation under test under the name of ``version``."""
        made = cls.lay(prefix, (cls._packages(PREFIX) / _PACKAGE).resolve(), PREFIX / "bin" / LAUNCHER)
        made.change("__init__.py", '__version__ = "0.1.0"', f'__version__ = "{version}"')
        return made

    @classmethod
    def lay(cls, prefix: Path, package: Path, launcher: Path) -> "Installation":
        """Of these."""
        made = cls(prefix)
        subprocess.run([PREFIX / "bin/python3", "-m", "venv", "--without-pip", "--symlinks", prefix], check=True)
        shutil.copy2(launcher, made.launcher)
        for entry in made._packages(PREFIX).iterdir():
            if entry.name != _PACKAGE:
                (made._packages(prefix) / entry.name).symlink_to(entry.resolve())
        shutil.copytree(package, made.package, ignore=shutil.ignore_patterns("__pycache__", "test_*", "bin"))
        return made

    @staticmethod
    def _packages(prefix: Path) -> Path:
        return Path(sysconfig.get_path("purelib", vars={"base": str(prefix), "platbase": str(prefix)}))

    @property
    def python(self) -> Path:
        return self.prefix / "bin/python3"

    @property
    def launcher(self) -> Path:
        return self.prefix / "bin" / LAUNCHER

    @property
    def package(self) -> Path:
        return self._packages(self.prefix) / _PACKAGE

    def change(self, file: str, old: str, new: str) -> None:
        """Replace ``old``, which is there once; the interpreter reads the file anew."""
        path = self.package / file
        text = path.read_text()
        assert text.count(old) == 1, (file, old)
        path.write_text(text.replace(old, new))

    def compile(self) -> None:
        """As an installation does, so that its first daemon need not."""
        subprocess.run([self.python, "-m", "compileall", "-q", self.package], check=True)

    def read_one_state_format(self) -> None:
        """As versions did before the record of state named its writer."""
        self.change("durable/store.py", "VERSION: Final = 2", "VERSION: Final = 1")
        self.change("durable/store.py", "READS: Final = (1, 2)", "READS: Final = (1,)")
        self.change("durable/store.py", "WRITES: Final = (1, 2)", "WRITES: Final = (1,)")

    def command(self, *words: str | Path) -> "subprocess.CompletedProcess[str]":
        """``kata-shimd`` of this installation."""
        argv = [self.python, "-I", "-m", "kata_shimd.cli", *words]
        return subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False, env={**os.environ})
