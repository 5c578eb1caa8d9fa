"""Events to containerd: one ordered queue, one sender that retries in place.

An event is sent when the one before it has been taken, so the order containerd sees is the order it happened, through any
number of restarts of containerd (Go's publisher loses it on a retry, `containerd.md` §1.11). Publishing never blocks and
never fails.
"""

import asyncio
import logging
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final

from kata_shimd import wire
from kata_shimd.api import containerd_types, forward
from kata_shimd.api.services import events as rpcs
from kata_shimd.errors import Code, ShimError
from kata_shimd.pod.events import Event
from kata_shimd.task import translate
from kata_shimd.ttrpc import Client, RpcError

_log = logging.getLogger(__name__)

#: Pause between attempts, doubled up to the last.
RETRY_SECONDS: Final = (0.1, 5.0)
#: Events kept while containerd is away; beyond, the oldest goes (clients learn exits from Wait and State as well).
MAX_WAITING: Final = 65536


class EventPublisher:
    """Run `run` as a task; `drained` tells when nothing waits. containerd has ``attempt`` seconds to take one event.

    ``record(number, event)`` is told of each event that waits, and with None of each that has been taken; ``barrier()`` is called
    before an event can be seen outside; ``channel(address)`` reaches containerd.
    """

    def __init__(
        self,
        address: str,
        namespace: str,
        *,
        attempt: float,
        record: Callable[[int, bytes | None], None] = lambda _number, _event: None,
        barrier: Callable[[], None] = lambda: None,
        channel: Callable[[str], Awaitable[Client]] | None = None,
    ) -> None:
        self._address, self._namespace, self._attempt = address, namespace, attempt
        self._record, self._barrier = record, barrier
        self._channel = channel or _channel
        self._waiting: deque[tuple[int, forward.ForwardRequest]] = deque(maxlen=MAX_WAITING)
        self._number = 0
        self._more = asyncio.Event()
        self.drained = asyncio.Event()
        self.drained.set()

    def publish(self, event: Event) -> None:
        """Queue an event, with the time it has now."""
        topic, message = translate.event(event)
        envelope = containerd_types.Envelope(
            timestamp=wire.timestamp(time.time_ns()),
            namespace=self._namespace,
            topic=topic,
            event=wire.pack_any(message),
        )
        if not self._address:
            _log.info("event %s has nowhere to go", topic)
            return
        request = forward.ForwardRequest(envelope=envelope)
        self._record(self._number + 1, wire.encode(request))
        self._enqueue(self._number + 1, request)

    def restore(self, waiting: Mapping[int, bytes]) -> None:
        """Before `run`: events that an earlier daemon had recorded, and that were not taken."""
        for number, event in sorted(waiting.items()):
            self._enqueue(number, wire.decode(forward.ForwardRequest, event))

    def _enqueue(self, number: int, request: forward.ForwardRequest) -> None:
        self._number = number
        self._waiting.append((number, request))
        self.drained.clear()
        self._more.set()

    async def run(self) -> None:
        """Send for ever; a connection that is lost is made anew."""
        pause = RETRY_SECONDS[0]
        while True:
            await self._more.wait()
            try:
                async with asyncio.timeout(self._attempt):
                    channel = await self._channel(self._address)
                async with channel as client:
                    pause = RETRY_SECONDS[0]
                    await self._send_all(client)
            except (ShimError, OSError, TimeoutError) as error:
                _log.warning("events wait for containerd: %s", error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, RETRY_SECONDS[1])

    async def _send_all(self, client: Client) -> None:
        while True:
            while self._waiting:
                number, event = self._waiting[0]
                self._barrier()
                await self._send(client, event)
                self._record(number, None)
                if self._waiting and self._waiting[0][0] == number:
                    self._waiting.popleft()
            self._barrier()
            self.drained.set()
            self._more.clear()
            await self._more.wait()

    async def _send(self, client: Client, request: forward.ForwardRequest) -> None:
        try:
            await client.call(rpcs.FORWARD.service, rpcs.FORWARD.name, wire.encode(request), timeout=self._attempt)
        except RpcError as error:
            if error.code in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED):
                raise
            topic = request.envelope.topic if request.envelope else ""
            _log.error("containerd refuses the event %s: %s", topic, error)


async def _channel(address: str) -> Client:
    return Client(await dial(address))


async def dial(address: str) -> socket.socket:
    """Connect to containerd's ttrpc socket. :raises OSError: nobody is there"""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, str(Path(address.removeprefix("unix://"))))
    except BaseException:
        sock.close()
        raise
    return sock
