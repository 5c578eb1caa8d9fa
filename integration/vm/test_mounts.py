"""Real mounts, in a mount namespace that ends with its process: each case is a function of `mount_cases`."""

import subprocess
import sys
from pathlib import Path

import pytest

from integration.vm import mount_cases

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("case", mount_cases.CASES)
def test_mount(case, tmp_path):
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", sys.executable, "-m", "integration.vm.mount_cases", case, tmp_path],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
