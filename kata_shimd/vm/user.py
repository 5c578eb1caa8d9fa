"""The user a pod's QEMU runs as: a number of its own, so that no VM can touch another's memory, files or signals.

Numbers come from a range that is nobody's (systemd reserves the ones below for containers and above for foreign systems) and
need no entry in /etc/passwd. The pod's hash chooses; a claim, a file `RUN/uids/<uid>.<pod>`, keeps two pods apart. Its name
is the pod's alone, so undoing it can never take another's claim away.
"""

import hashlib
import os
from pathlib import Path
from typing import Final

from kata_shimd.errors import HostFailed, ResourceExhausted
from kata_shimd.ledger import BOOT, Kind, Ledger

FIRST: Final = 0x7000_0000
LAST: Final = 0x7FFD_FFFF
_ATTEMPTS: Final = 16


def claim(ledger: Ledger, directory: Path, pod: str) -> tuple[int, int]:
    """Claim a uid, which is also a gid, for ``pod``.

    :param directory: where claims lie, RUN/uids; made when missing
    :returns: the uid, and the number of the record that must outlive the process
    :raises HostFailed: the claim cannot be written
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for attempt in range(_ATTEMPTS):
            uid = candidate(pod, attempt)
            record = _claim(ledger, directory, uid, pod)
            if record is not None:
                return uid, record
    except OSError as error:
        raise HostFailed("claim user", str(directory), error.strerror or "") from error
    raise ResourceExhausted("claim user", pod, f"{_ATTEMPTS} candidates are all taken", hint=f"see {directory}")


def candidate(pod: str, attempt: int) -> int:
    """The attempt-th choice of ``pod``. Two pods that meet at one do not meet at the next."""
    digest = hashlib.sha256(f"{pod}\0{attempt}".encode()).digest()
    return FIRST + int.from_bytes(digest[:8], "big") % (LAST - FIRST + 1)


def _claim(ledger: Ledger, directory: Path, uid: int, pod: str) -> int | None:
    """Write the claim, then look for others: of two that claim at once at least one sees the other."""
    mine = directory / f"{uid}.{pod}"
    record = ledger.plan(Kind.FILE, scope=BOOT, path=str(mine))
    os.close(os.open(mine, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    if any(other != mine for other in directory.glob(f"{uid}.*")):
        mine.unlink()
        ledger.undone(record)
        return None
    return record
