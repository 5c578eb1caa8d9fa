"""How often a guest may make us do something: at once for a while, then at a steady rate."""

import asyncio


class Pace:
    """Lets ``burst`` turns pass at once, and then one every ``interval`` seconds; a rest earns the burst again."""

    __slots__ = ("_at", "_burst", "_interval", "_left")

    def __init__(self, burst: int, interval: float) -> None:
        self._burst, self._interval = burst, interval
        self._left = float(burst)
        self._at = asyncio.get_running_loop().time()

    async def turn(self) -> None:
        """Wait until the next turn is due."""
        self._earn()
        if self._left < 1:
            await asyncio.sleep((1 - self._left) * self._interval)
            self._earn()
        self._left = max(0.0, self._left - 1)

    def _earn(self) -> None:
        now = asyncio.get_running_loop().time()
        self._left = min(float(self._burst), self._left + (now - self._at) / self._interval)
        self._at = now
