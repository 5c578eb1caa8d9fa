"""What the kernel says of a process on its way out."""

import os
import subprocess

from kata_shimd.host.process import _is_exiting


def test_a_process_that_has_ended_is_exiting_until_it_is_gone_and_after():
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert _is_exiting(child.pid), "it is a zombie"
    child.wait()
    assert _is_exiting(child.pid)


def test_a_process_that_lives_is_not():
    assert not _is_exiting(os.getpid())
