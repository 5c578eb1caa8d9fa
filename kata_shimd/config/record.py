"""The files of a pod's configuration as they were when it was born, for its later daemons.

Whoever edits the node's configuration speaks of pods to come: what a running pod is made of does not change, nor does who keeps it.
Without this a file that is edited to nonsense would end every pod at the next death of its daemon.
"""

import base64
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from kata_shimd.config.layers import File
from kata_shimd.config.origin import Layer
from kata_shimd.errors import HostFailed

NAME: Final = "configuration"
FORMAT: Final = 1
_STEP: Final = "record configuration"


def write(pod_dir: Path, files: Sequence[File]) -> None:
    """Put ``files`` on record, once for all: a record that is there stays.

    :raises HostFailed: it could not be written
    """
    path, made = pod_dir / NAME, pod_dir / f"{NAME}.new"
    if path.exists():
        return
    rows = [[str(file.path), file.layer.value, base64.b64encode(file.data).decode()] for file in files]
    try:
        with open(made, "w", opener=_private) as out:
            json.dump({"format": FORMAT, "files": rows}, out)
        made.replace(path)
    except OSError as error:
        raise HostFailed(_STEP, str(path), error.strerror or str(error)) from error


def read(pod_dir: Path) -> tuple[File, ...] | None:
    """What is on record; None if nothing is, or in a format that is not ours.

    :raises HostFailed: there is a record, and it cannot be read
    """
    path = pod_dir / NAME
    try:
        found = json.loads(path.read_bytes())
        if found["format"] != FORMAT:
            return None
        return tuple(File(Path(where), Layer(layer), base64.b64decode(data)) for where, layer, data in found["files"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        hint = "it was written when the pod began; end the pod"
        raise HostFailed("read configuration of pod", str(path), str(error), hint=hint) from error


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
