"""Killing a pod's daemon, and what somebody may have noticed of it."""

import signal
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from integration.harness.containerd import Containerd
from integration.harness.ctr import Ctr, Done
from integration.harness.pods import Pod
from integration.harness.process import Process
from integration.harness.scale import SCALE
from integration.harness.waiting import eventually

#: For a killed daemon's successor to be on record and to serve.
REBORN: Final = 10.0 * SCALE


def kill_daemon(pod: Pod) -> None:
    """SIGKILL; returns when another daemon serves."""
    before = served(pod)
    old = pod.process("daemon")
    old.kill()
    eventually("the daemon's end", lambda: not old.alive(), within=REBORN)
    eventually("another daemon", lambda: served(pod) > before, within=REBORN)


def served(pod: Pod) -> int:
    """How many daemons of this pod have come as far as to serve."""
    return sum(event["event"] == "agent-ready" for event in pod.journal())


class Noticed:
    """containerd's log from here on: a shim that it takes for dead, or cleans up after."""

    SIGNS: Final = ("failed to clean up", "ttrpc: closed", "unknown stream")
    DISCONNECTED: Final = 'msg="shim disconnected"'

    def __init__(self, containerd: Containerd) -> None:
        self._containerd = containerd
        self._from = containerd.log.stat().st_size
        #: Deletions that are to be: each is a disconnection in the log.
        self.deletions = 0

    def complaints(self) -> list[str]:
        lines = self._containerd.log_from(self._from).splitlines()
        disconnected = [line for line in lines if self.DISCONNECTED in line]
        return [line for line in lines if any(sign in line for sign in self.SIGNS)] + disconnected[self.deletions :]


class Hammer:
    """Runs a client call again and again in a thread; `calls` are all of them when it has ended."""

    def __init__(self, call: Callable[[], Done]) -> None:
        self.calls: list[Done] = []
        self._call, self._over = call, threading.Event()
        self._thread = threading.Thread(target=self._run, name="hammer", daemon=True)

    def _run(self) -> None:
        while not self._over.is_set():
            self.calls.append(self._call())

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def failures(self) -> list[Done]:
        return [done for done in self.calls if done.code != 0]

    def longest(self) -> float:
        return max(done.seconds for done in self.calls)


def listing(ctr: Ctr, wanted: dict[str, str]) -> Callable[[], Done]:
    """``ctr task ls``, made to fail unless each of these containers has this status."""

    def call() -> Done:
        begin = time.monotonic()
        done = ctr("task", "ls")
        rows = {row[0]: row[2] for line in done.out.splitlines()[1:] if len(row := line.split()) == 3}
        wrong = {name: rows.get(name, "") for name, status in wanted.items() if rows.get(name) != status}
        seconds = time.monotonic() - begin
        return Done(done.argv, done.code or (90 if wrong else 0), done.stdout, done.stderr, seconds)

    return call


class Stopped:
    """A process held by SIGSTOP while the block runs; one that was killed meanwhile is left in peace."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def __enter__(self) -> Self:
        self._process.signal(signal.SIGSTOP)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.signal(signal.SIGCONT)
