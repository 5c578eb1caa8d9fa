"""A daemon that makes room for another version's, as far as it is its own doing. Whole moves are in integration/keeper."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from kata_shimd.durable import formats, successor


class Keeper:
    begins_ahead = True

    def __init__(self):
        self.next = []

    def next_is(self, argv, patience):
        self.next.append((argv, patience))


class Store:
    version = formats.OURS.state[-1]

    def rewrite(self, version):
        self.version = version


class Ours:
    launcher = Path("/bin/false")

    def argv(self, python, launcher):
        return [python, launcher]


async def asked(_argv):
    return 0, formats.said()


@pytest.mark.parametrize(("stops", "killed"), [(False, [(os.getpid(), signal.SIGKILL)]), (True, [])])
async def test_it_goes_unless_its_pod_ends_meanwhile(monkeypatch, stops, killed):
    gone, keeper, came = [], Keeper(), asyncio.Event()

    def asked_whether_it_stops():
        came.set()
        return stops

    monkeypatch.setattr(successor.os, "kill", lambda *how: gone.append(how))
    one = successor.Successor(Ours(), keeper, Store(), asked, lambda *_, **__: None, asked_whether_it_stops)
    assert await one.go_on("/bin/true", "/bin/true", 60) == formats.OURS.version
    assert keeper.next == [(["/bin/true", "/bin/true"], 60)]
    await asyncio.wait_for(came.wait(), 5)  # it goes some time after the answer, as long as the check has taken
    assert gone == killed
