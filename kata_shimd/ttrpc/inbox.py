"""What has arrived on one stream and nobody has taken yet.

ttrpc has no flow control, so a sender cannot be asked to wait, and a reader that waited for one stream would stop all
others of the connection. The queue is therefore bounded and a peer that overruns it loses that stream.
"""

import asyncio
from collections import deque

from ..errors import ShimError


class Inbox:
    """A queue of messages with an end, which is either clean or an error. One taker at a time."""

    __slots__ = ("_bytes", "_ended", "_error", "_max_bytes", "_max_messages", "_messages", "_taker")

    def __init__(self, max_messages: int, max_bytes: int) -> None:
        self._messages: deque[bytes] = deque()
        self._bytes = 0
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._ended = False
        self._error: ShimError | None = None
        self._taker: asyncio.Future[None] | None = None

    @property
    def error(self) -> ShimError | None:
        return self._error

    def put(self, data: bytes) -> bool:
        """False when the queue is full already: the message was not taken, the stream has to fail."""
        if len(self._messages) >= self._max_messages or self._bytes >= self._max_bytes:
            return False
        self._messages.append(data)
        self._bytes += len(data)
        self._wake()
        return True

    def end(self, error: ShimError | None = None) -> None:
        """No more will come. What is queued is still given out first; of several ends the first one counts."""
        if not self._ended:
            self._ended, self._error = True, error
            self._wake()

    async def get(self) -> bytes | None:
        """The next message; None at the end, every time. Raises the error the stream ended with."""
        while not self._messages:
            if self._error is not None:
                raise self._error
            if self._ended:
                return None
            self._taker = asyncio.get_running_loop().create_future()
            await self._taker
        data = self._messages.popleft()
        self._bytes -= len(data)
        return data

    def _wake(self) -> None:
        if self._taker is not None and not self._taker.done():
            self._taker.set_result(None)
