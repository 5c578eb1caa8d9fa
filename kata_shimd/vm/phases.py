"""How long each phase of a boot took: for the journal, and for whoever asks why it was slow."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from kata_shimd.journal import Journal


class Phases:
    """``with phases("qmp"):`` measures and journals one phase, failed or not."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        #: Seconds by phase, in order.
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        begun = time.monotonic()
        try:
            yield
        finally:
            self.seconds[phase] = time.monotonic() - begun
            self._journal.write("boot-phase", phase=phase, ms=round(self.seconds[phase] * 1000, 1))
