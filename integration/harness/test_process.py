"""What a session's processes leave is ended with it, also what has left its parent."""

import subprocess
import sys

from integration.harness.install import REPOSITORY

#: A child that begins another and ends, so that we have the other.
SCRIPT = """
import subprocess
from integration.harness import process
process.become_subreaper()
subprocess.run(["sh", "-c", "sleep 86397 >/dev/null & true"], check=True)
print(sorted(process.end_descendants()))
print(process.end_descendants())
"""


def test_descendants_end_also_those_without_a_parent():
    words = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines() == ["['sleep 86397']", "[]"]
