"""Fuzz of the guest's console, from its socket to what is kept of it.

    python -m integration.fuzz.console_bytes [--count 1000000] [--seed 1]

Permitted: nothing. Also required: what is kept is harmless to show, is not longer than it may be in memory or on disk, and does
not depend on how the bytes were split.
"""

import asyncio
import random
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final

from integration.fuzz import mutate
from integration.fuzz.engine import Target, corpus, main, scratch
from kata_shimd.vm.console import RING, Console, Sanitizer

_LIMIT: Final = 4096
#: One console is used for so many inputs: it has to forget.
_EACH: Final = 256
Input = list[bytes]


@cache
def _kept() -> bytes:
    return b"".join(corpus("console"))


def make(rng: random.Random) -> Input:
    data = mutate.data(rng, _kept())
    return mutate.pieces(rng, data * (50 if rng.random() < 0.01 else 1))


def _harmless(text: str) -> bool:
    return text.replace("\n", "").replace("\t", "").isprintable()


class _Fuzzed:
    """A console on a socket pair, made anew now and then."""

    def __init__(self, directory: Path) -> None:
        self._log, self._number = directory / "console.log", 0
        self._begin()

    def _begin(self) -> None:
        self._log.unlink(missing_ok=True)
        ours, self._guest = socket.socketpair()
        ours.setblocking(False)
        self._console = Console(self._log, limit=_LIMIT)
        self._console.attach(ours)

    async def check(self, given: Input) -> None:
        for piece in given:
            for start in range(0, len(piece), 32768):  # no more at once than a socket takes
                self._guest.sendall(piece[start : start + 32768])
                self._console.drain()
        tail = self._console.tail(RING)
        assert len(tail) <= RING, "more in memory than may be"
        assert _harmless(tail), "something that drives a terminal"
        assert self._log.stat().st_size <= _LIMIT, "more on disk than may be"
        whole, split = Sanitizer(), Sanitizer()
        assert whole.feed(b"".join(given)) == "".join(map(split.feed, given)), "it depends on the pieces"
        self._number += 1
        if self._number % _EACH == 0:
            self.end()
            self._begin()

    def end(self) -> None:
        self._console.close()
        self._guest.close()


@contextmanager
def opened() -> Iterator[Callable[[Any], None]]:
    with scratch() as name, asyncio.Runner() as runner:
        loop = runner.get_loop()
        fuzzed = runner.run(_made(Path(name)))
        try:
            yield lambda given: loop.run_until_complete(fuzzed.check(given))
        finally:
            runner.run(_ended(fuzzed))


async def _made(directory: Path) -> _Fuzzed:
    return _Fuzzed(directory)


async def _ended(fuzzed: _Fuzzed) -> None:
    fuzzed.end()


TARGET: Final = Target("console_bytes", (), make, opened)

if __name__ == "__main__":
    main(TARGET)
