"""One factor for every deadline of the tests, by what runs the guests' processors.

The factor is the daemon's own, and so is the reasoning: hardware virtualisation is taken only where ``/dev/kvm`` opens *and*
the processor shows vmx or svm, because a paravirtual host may offer the one without the other.
"""

import os
import re
from pathlib import Path
from typing import Final

from kata_shimd.config.model import TIME_SCALE, Accelerator


def hardware_virtualisation() -> bool:
    """Can a guest run on the processor itself here?"""
    flags = re.search(r"^flags\s*:.*\b(vmx|svm)\b", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return flags is not None and os.access("/dev/kvm", os.R_OK | os.W_OK)


SCALE: Final = TIME_SCALE[Accelerator.KVM if hardware_virtualisation() else Accelerator.TCG]
