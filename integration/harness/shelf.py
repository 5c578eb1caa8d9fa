"""Where the templates of this session's private hosts lie: one tmpfs for all of them, so that each template is made once.

It is in a mount namespace of its own, held by a process that ends with us (its stdin is our pipe): whatever becomes of us, it
goes. A host finds it at the place that the product has by default.
"""

import atexit
import functools
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

from integration.harness import process

#: Where templates are when the configuration does not say.
PLACE: Final = Path("/run/vc/vm/template")
_HOLDER: Final = 'mount -t tmpfs -o mode=700 tmpfs "$1" && echo ready && exec cat'


@functools.cache
def shelf() -> tuple[int, Path]:
    """The pid of the process whose mount namespace it is in, and where; made when it is first asked for."""
    path = Path(tempfile.mkdtemp(prefix="kt-shelf-", dir="/tmp"))
    holder = process.spawn(
        ["unshare", "--mount", "--propagation=private", "sh", "-c", _HOLDER, "holder", str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    atexit.register(_remove, path)
    atexit.register(process.finish, holder)
    assert holder.stdout is not None
    if holder.stdout.readline() != b"ready\n":
        raise RuntimeError("no private mount namespace with a tmpfs: are we root, with unshare and mount installed?")
    return holder.pid, path


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.rmdir()
