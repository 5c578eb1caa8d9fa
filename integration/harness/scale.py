"""One factor for every deadline of the tests, by what runs the guests' processors.

The daemon's own deadlines are scaled by the same reasoning: hardware virtualisation is taken only where ``/dev/kvm`` opens *and*
the processor shows vmx or svm, because a paravirtual host may offer the one without the other.
"""

import os
import re
from pathlib import Path
from typing import Final

#: Emulated processors are roughly this much slower than the machine's own.
EMULATED: Final = 4.0


def hardware_virtualisation() -> bool:
    """Can a guest run on the processor itself here?"""
    flags = re.search(r"^flags\s*:.*\b(vmx|svm)\b", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return flags is not None and os.access("/dev/kvm", os.R_OK | os.W_OK)


SCALE: Final = 1.0 if hardware_virtualisation() else EMULATED
