"""Fixtures of the VM's unit tests: a pod directory with a ledger, and both event loops."""

import asyncio
import json
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest
import uvloop

from kata_shimd.journal import Journal
from kata_shimd.ledger import NAME, Ledger


@pytest.fixture
def pod_dir(tmp_path):
    directory = tmp_path / "pods" / "0123456789abcdef0123"
    directory.mkdir(parents=True, mode=0o700)
    opened = {"op": "open", "v": 1, "pod": directory.name, "namespace": "test", "id": "pod", "address": "/nowhere"}
    (directory / NAME).write_text(json.dumps(opened) + "\n")
    return directory


@pytest.fixture
def ledger(pod_dir):
    opened = Ledger(pod_dir)
    yield opened
    opened.close()


@pytest.fixture
def journal(tmp_path):
    opened = Journal(tmp_path / "journal.jsonl")
    yield opened
    opened.close()


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request):
    """Run a coroutine to its end, on either event loop."""

    def run(coroutine):
        with asyncio.Runner(loop_factory=request.param) as runner:
            return runner.run(coroutine)

    return run


@pytest.fixture
def descriptors():
    """Count our open descriptors."""
    return lambda: len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def pair():
    """Make non-blocking socket pairs, ours first; they are closed in the end."""
    with ExitStack() as stack:

        def make():
            ends = socket.socketpair()
            for end in ends:
                stack.enter_context(end).setblocking(False)
            return ends

        yield make
