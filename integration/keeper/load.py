"""Everything that clients do, at once and over and over, while a pod's daemon is killed at moments that nobody chose.

One pod that stays. Listings, execs with exit codes, streams that come back byte for byte, and beside it whole lives of other
containers, each in a pod that has its own daemon killed too. What went wrong is a sentence; none is good.
"""

import hashlib
import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from integration.harness.ctr import Ctr, Done
from integration.harness.pods import Pod
from integration.harness.scale import SCALE
from integration.keeper.killing import listing
from integration.keeper.setups import Setup
from kata_shimd.errors import HostFailed
from kata_shimd.ledger import Phase

#: Seconds between two deaths of one daemon, at the least and at the most. Without a spare a daemon starts cold: where the next
#: death mostly comes before it serves, calls wait for one start after the other, and that is all that is measured.
PAUSE: Final = (0.05 * SCALE, 0.6 * SCALE)
PAUSE_COLD: Final = (0.05 * SCALE, 1.5 * SCALE)
#: A client call may take this long with daemons dying all the time.
WITHIN: Final = 120.0 * SCALE


@dataclass(slots=True)
class Seen:
    """What has happened."""

    kills: int = 0
    calls: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    #: The host's, at each death.
    loads: list[float] = field(default_factory=list)

    def note(self, what: str, done: Done, *, right: bool) -> None:
        self.calls[what] = self.calls.get(what, 0) + 1
        self.seconds.setdefault(what, []).append(done.seconds)
        if not right:
            said = f"{done.out[-200:]} {done.err[-300:]}"
            self.wrong.append(f"{what}: exit code {done.code} after {done.seconds:.2f} s: {said}")

    def longest(self, what: str) -> float:
        return max(self.seconds.get(what, [0.0]))


class Load:
    """``pod_of`` finds a container's pod; ``setup`` is what ``ctr`` is to have configured; ``size`` is of a stream each way,
    in bytes."""

    def __init__(
        self, ctr: Ctr, name: str, pod_of: Callable[[str], Pod], setup: Setup | None = None, *, size: int, seed: int
    ) -> None:
        self._ctr, self._name, self._pod_of, self._size = ctr, name, pod_of, size
        self._setup = setup
        self._random = random.Random(seed)
        self._over = threading.Event()
        self._numbers = iter(range(1, 1_000_000))
        self.seen = Seen()

    def run(self, kills: int) -> Seen:
        """Until that many daemons were killed, and what was under way has ended."""
        pause = PAUSE if self._setup is None or self._setup.spare else PAUSE_COLD

        def kill() -> None:
            while self.seen.kills < kills:
                time.sleep(self._random.uniform(*pause))  # the moment of a death is what is being varied
                self._kill(self._name)

        return self.during(kill)

    def during(self, act: Callable[[], None]) -> Seen:
        """Until ``act`` has come back, and what was under way has ended."""
        self._ctr.start(self._name, "sh", "-c", "while :; do sleep 86400; done")
        work = (self._list, self._exec, self._stream, self._live)
        threads = [threading.Thread(target=self._repeat, args=(one,), name=one.__name__, daemon=True) for one in work]
        try:
            self._check_setup()
            for thread in threads:
                thread.start()
            act()
            self._over.set()
            for thread in threads:
                thread.join()
        finally:
            self._over.set()
            self._ctr.remove(self._name)
        return self.seen

    def _check_setup(self) -> None:
        found = Setup.found(self._pod_of(self._name))
        if self._setup not in (None, found):
            self.seen.wrong.append(f"wanted was that {self._setup}; it is that {found}")

    def _kill(self, name: str) -> None:
        try:
            pod = self._pod_of(name)
            if pod.ledger().phase is not Phase.RUNNING:
                return  # before a pod's first daemon serves, its death is a failure of `start`
            pod.process("daemon").kill()
        except (LookupError, OSError, HostFailed):
            return  # between two daemons
        self.seen.kills += 1
        self.seen.loads.append(round(os.getloadavg()[0], 1))

    def _repeat(self, act: Callable[[], None]) -> None:
        while not self._over.is_set():
            try:
                act()
            except Exception as error:
                self.seen.wrong.append(f"{act.__name__}: {error!r}"[:600])

    # --- what clients do ---------------------------------------------------------------------------------------------

    def _list(self) -> None:
        done = listing(self._ctr, {self._name: "RUNNING"})()
        self.seen.note("list", done, right=done.code == 0)

    def _exec(self) -> None:
        code = self._random.randrange(256)
        done = self._ctr.exec(self._name, self._id(), "sh", "-c", f"echo out; exit {code}", within=WITHIN)
        self.seen.note("exec", done, right=(done.code, done.stdout) == (code, b"out\n"))

    def _stream(self) -> None:
        data = os.urandom(self._size)
        done = self._ctr.exec(self._name, self._id(), "cat", input=data, within=WITHIN)
        got = (done.code, len(done.stdout), hashlib.sha256(done.stdout).hexdigest())
        self.seen.note("stream", done, right=got == (0, len(data), hashlib.sha256(data).hexdigest()))

    def _live(self) -> None:
        """One whole life in a pod of its own, whose daemon dies once on the way."""
        name, code = f"{self._name}-{self._id()}", self._random.randrange(1, 256)
        timer = threading.Timer(self._random.uniform(0, 6 * SCALE), self._kill, (name,))
        timer.start()
        try:
            done = self._ctr.run(name, "sh", "-c", f"echo lived; exit {code}", within=WITHIN)
        finally:
            timer.cancel()
            timer.join()
        self.seen.note("life", done, right=(done.code, done.stdout) == (code, b"lived\n"))
        if done.code != code:
            self._ctr.remove(name)

    def _id(self) -> str:
        return f"x{next(self._numbers)}"
