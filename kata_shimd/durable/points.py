"""Places at which a test may have the daemon die: after every step that another daemon could see.

``KATA_SHIMD_DIE_FILE`` names a file that holds a number. The daemon counts the steps it takes after it has seen the file, removes
it at that step, and kills itself: a test arms a live daemon by writing the file, and each file is one death.
"""

import os
import signal
from pathlib import Path
from typing import Final

_VARIABLE: Final = "KATA_SHIMD_DIE_FILE"


class Points:
    """Counts steps towards the one that the file names."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._seen: tuple[int, int] | None = None
        self._left = 0

    def __call__(self) -> None:
        """A step was taken."""
        if self._file is not None:
            self._count(self._file)

    def _count(self, file: Path) -> None:
        try:
            found = file.stat()
            identity = (found.st_ino, found.st_mtime_ns)
            if identity != self._seen:
                self._seen, self._left = identity, int(file.read_text())
            self._left -= 1
            if self._left <= 0:
                file.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
        except (OSError, ValueError):
            return


def _named() -> Path | None:
    name = os.environ.get(_VARIABLE)
    return Path(name) if name else None


#: Called after every durable step.
passed: Final = Points(_named())
