"""QMP: one connection to QEMU's monitor, through qemu.qmp, with what that library leaves to us.

Every wait has a deadline, one command is outstanding at a time (a stuck one cannot pile others up), lines are bounded, errors
keep QEMU's class and description. A command that was cut off may have been carried out all the same: nobody can know.
"""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from qemu.qmp import EventListener, ExecuteError, Message, QMPClient, QMPError, Runstate

from kata_shimd.errors import DeadlineExceeded, VmFailed
from kata_shimd.vm import sockets

_log = logging.getLogger(__name__)

#: The longest line taken from QEMU; its longest real one, the schema, is never asked for.
MAX_LINE: Final = 1 << 20

#: Events that say something about the VM's life or an answer to hot-plug; others (RTC_CHANGE, VSERPORT_CHANGE) are noise.
EVENTS: Final = frozenset(
    {
        "SHUTDOWN", "RESET", "STOP", "RESUME", "POWERDOWN", "GUEST_PANICKED", "GUEST_CRASHLOADED",
        "DEVICE_DELETED", "DEVICE_UNPLUG_GUEST_ERROR", "ACPI_DEVICE_OST", "BLOCK_IO_ERROR", "WATCHDOG",
    }
)  # fmt: skip

#: How a connection can end: the library lets pass what its reader raised, for text that is no text and nesting without end too.
_BROKEN: Final = (QMPError, OSError, EOFError, ValueError, RecursionError)

OnEvent = Callable[[str, Mapping[str, Any]], None]


class _Listener(EventListener):
    """Hands events on as they come. The library's own keeps every event it ever saw, for as long as the VM lives."""

    def __init__(self, on_event: OnEvent) -> None:
        super().__init__(EVENTS)
        self._on_event = on_event

    async def put(self, event: Message) -> None:
        if self.accept(event):
            self._on_event(str(event["event"]), _mapping(event.get("data")))


class Monitor:
    """A connected monitor. Once broken it stays broken; connect another."""

    def __init__(self, client: QMPClient, channel: socket.socket, timeout: float) -> None:
        self._client = client
        #: A second descriptor of the connection: with it an fd can be sent on any event loop.
        self._channel = channel
        self._timeout = timeout
        self._turn = asyncio.Lock()

    @classmethod
    async def connect(cls, path: Path, on_event: OnEvent, *, timeout: float) -> "Monitor":
        """Connect and negotiate. ``on_event`` gets each event of `EVENTS`, from the first one, and must not raise.

        :raises HostFailed: nobody listens at ``path``
        :raises DeadlineExceeded, VmFailed: as `over`
        """
        return await cls.over(sockets.connect(path), str(path), on_event, timeout=timeout)

    @classmethod
    async def over(cls, connected: socket.socket, name: str, on_event: OnEvent, *, timeout: float) -> "Monitor":
        """Negotiate on a connection, which is the monitor's own from now on; ``name`` is what errors call it.

        :raises DeadlineExceeded: QEMU said nothing in ``timeout`` seconds
        :raises VmFailed: QEMU closed the connection, or said nonsense
        """
        channel = connected.dup()
        client = QMPClient(Path(name).name, readbuflen=MAX_LINE)
        # The default listener cannot be removed, and would keep every event for as long as the VM lives.
        client.events.event_filter = lambda _: False
        client.register_listener(_Listener(on_event))
        try:
            async with asyncio.timeout(timeout):
                await _negotiate(client, connected)
        except TimeoutError as error:
            raise DeadlineExceeded("connect QMP", name, f"no greeting in {timeout:g} s") from error
        except _BROKEN as error:
            raise VmFailed("connect QMP", name, _said(error)) from error
        finally:
            if client.runstate is not Runstate.RUNNING:
                channel.close()
                connected.close()
        return cls(client, channel, timeout)

    async def execute(self, command: str, arguments: Mapping[str, Any] | None = None, *, timeout: float = 0) -> Any:
        """Carry out one command; what it returns.

        :param timeout: seconds, of which waiting for one's turn is a part; 0 means the monitor's own
        :raises VmFailed: QEMU refused, with class and description, or is gone
        :raises DeadlineExceeded: no answer in time
        """
        return await self._in_turn(command, arguments, timeout or self._timeout)

    async def status(self) -> str:
        """query-status: ``running``, ``paused``, ``internal-error``, ``guest-panicked`` …"""
        answer = await self.execute("query-status")
        return str(answer.get("status", "")) if isinstance(answer, dict) else ""

    async def device_del(self, device_id: str, *, timeout: float) -> None:
        """Unplug a device and wait until the guest has let go of it."""
        with self._client.listener("DEVICE_DELETED", lambda event: _device(event) == device_id) as deleted:
            await self.execute("device_del", {"id": device_id})
            async with _deadline("device_del", device_id, timeout):
                await deleted.get()

    @contextmanager
    def statuses(self, event: str) -> Iterator[Callable[[], Awaitable[str]]]:
        """What gives the next ``status`` of the events of this name; none that comes from now on is missed."""
        with self._client.listener(event) as heard:

            async def following() -> str:
                return str(_mapping((await heard.get()).get("data")).get("status", ""))

            yield following

    async def send_fd(self, name: str, fd: int) -> None:
        """Give QEMU a descriptor under ``name``.

        The library's own way needs a loop's private socket. A blank between two commands is no part of any, so it can
        carry the descriptor; having the turn means that no command is half written.
        """
        async with _deadline("getfd", name, self._timeout), self._turn:
            try:
                socket.send_fds(self._channel, [b" "], [fd])
            except OSError as error:
                raise VmFailed("qmp getfd", name, error.strerror or "") from error
            await self._run("getfd", {"fdname": name})

    async def ended(self, timeout: float) -> None:
        """Wait until everything QEMU had said before it closed the connection has been handed on."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while self._client.runstate is Runstate.RUNNING:
                    await self._client.runstate_changed()

    async def close(self) -> None:
        """Let go of QEMU, which goes on."""
        self._channel.close()
        # It raises again whatever ended the connection, which whoever was waiting has been told.
        with suppress(Exception):
            await self._client.disconnect()

    async def _in_turn(self, command: str, arguments: Mapping[str, Any] | None, timeout: float) -> Any:
        async with _deadline(command, "", timeout), self._turn:
            return await self._run(command, arguments)

    async def _run(self, command: str, arguments: Mapping[str, Any] | None) -> Any:
        _log.debug("qmp --> %s", command)
        try:
            return await self._client.execute(command, dict(arguments) if arguments else None)
        except ExecuteError as error:
            cause = f"{error.error_class}: {error}"
            raise VmFailed(f"qmp {command}", _subject(arguments), cause) from error
        except _BROKEN as error:
            raise VmFailed(f"qmp {command}", _subject(arguments), _said(error), hint="it may have been done") from error


async def _negotiate(client: QMPClient, connected: socket.socket) -> None:
    """The library asserts that QEMU is there still when it has answered; one that ends in that very moment may do so.

    :raises Exception: one of `_BROKEN`, what ended the connection
    """
    with suppress(AssertionError):
        await client.connect(connected)
    if client.runstate is not Runstate.RUNNING:
        await client.disconnect()  # which raises why
        raise EOFError("QEMU closed the connection")


@asynccontextmanager
async def _deadline(command: str, obj: str, seconds: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise DeadlineExceeded(f"qmp {command}", obj, f"no answer in {seconds:g} s") from error


def _subject(arguments: Mapping[str, Any] | None) -> str:
    """The thing a command is about, for its error."""
    return next((str((arguments or {})[key]) for key in ("id", "node-name", "fdname") if key in (arguments or {})), "")


def _device(event: Mapping[str, Any]) -> str:
    return str(_mapping(event.get("data")).get("device", ""))


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _said(error: BaseException) -> str:
    """An error of the connection in a few words; the library's own carry whole messages."""
    inner = getattr(error, "exc", None) or error
    return f"{type(inner).__name__}: {inner}"[:500]
