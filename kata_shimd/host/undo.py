"""One scope of a pod taken away while the pod lives on: by the launcher's ``undo``, the only one there is."""

from pathlib import Path

from kata_shimd.errors import HostFailed
from kata_shimd.host import process
from kata_shimd.ledger import Ledger


async def undo(ledger: Ledger, launcher: Path, scope: str, *, step: str, obj: str) -> None:
    """Undo what is on record under ``scope``; ``step`` and ``obj`` are for people.

    :raises HostFailed: something would not go; it is named, and stays on record
    """
    status, said = await process.run((launcher, "undo", ledger.pod_dir, scope), what="undo")
    ledger.refresh()
    if status != 0:
        raise HostFailed(step, obj, said or f"undo ended with {status}")
