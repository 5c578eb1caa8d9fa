"""Pods' units after a move: systemd begins later daemons, and judges deaths, by the launcher that the unit names.

The unit's own part is written by the launcher that began it (`launcher/src/unit/offer.rs`). Until it names the new one the old
installation is needed; nothing else follows from that, so this may fail and be done again.
"""

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from kata_shimd.errors import HostFailed

#: Of this boot (sd_booted(3)); the launcher's place and name.
RUNTIME: Final = Path("/run/systemd/system")
_DROP_IN: Final = "kata-pod@{}.service.d/50-pod.conf"
_COMMAND: Final = re.compile(r'^(Exec(?:Start|StopPost)=)"(?:[^"\\]|\\.)*"(?= unit(?:-ended)? )', re.MULTILINE)
_STEP: Final = "move unit"


def follow(hashes: Iterable[str], launcher: str, directory: Path = RUNTIME) -> None:
    """Have the units of these pods, as far as they are any, name ``launcher``.

    :raises HostFailed: one could not be written, or systemd has not read them
    """
    changed = [name for name in hashes if _rewrite(directory / _DROP_IN.format(name), launcher)]
    if not changed:
        return
    try:
        done = subprocess.run(["systemctl", "daemon-reload"], capture_output=True, text=True, timeout=90, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HostFailed(_STEP, "systemctl daemon-reload", str(error), hint="run it") from error
    if done.returncode != 0:
        raise HostFailed(_STEP, "systemctl daemon-reload", done.stderr.strip(), hint="run it")


def _rewrite(path: Path, launcher: str) -> bool:
    """Whether there was anything to do. systemd reads either the old file or the new."""
    draft = path.with_name(f".{path.name}.new")
    try:
        text = path.read_text()
        if (new := _COMMAND.sub(lambda found: found[1] + _quoted(launcher), text)) == text:
            return False
        draft.write_text(new)
        draft.replace(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise HostFailed(_STEP, str(path), error.strerror or str(error)) from error
    return True


def _quoted(word: str) -> str:
    """A word of a command line in a unit file, as the launcher writes it."""
    for character, written in (("\\", "\\\\"), ('"', '\\"'), ("%", "%%"), ("$", "$$")):
        word = word.replace(character, written)
    return f'"{word}"'
