"""The one place where an RPC is entered and left: context, time, journal, and every error's status.

It is the only ``except Exception`` of the daemon's request path; no RPC can forget it.
"""

import logging
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final

from kata_shimd import log
from kata_shimd.errors import Code, DeadlineExceeded, ShimError
from kata_shimd.ttrpc import Call

_log = logging.getLogger(__name__)

#: Asked all the time, and of no interest to a later reader unless they fail.
_QUIET: Final = frozenset({"State", "Pids", "Connect", "Stats"})
#: They ask the host or the guest for much, so a daemon may die, or hang, with one of them half done: its beginning is told too.
_LONG: Final = frozenset({"Create", "Start", "Delete"})


class Unforeseen(ShimError):
    """A bug of ours. The traceback is in the log; the client learns where to look."""

    code = Code.UNKNOWN


class Boundary:
    """Stands round one call: ``with Boundary(note, call): reply = handler(request)``."""

    __slots__ = ("_began", "_call", "_note", "_tokens", "_under_way")

    def __init__(self, note: Callable[..., None], call: Call, under_way: "set[Boundary]") -> None:
        self._note, self._call, self._under_way = note, call, under_way

    @property
    def seconds(self) -> float:
        """How long the call has been under way."""
        return time.monotonic() - self._began

    def report(self) -> dict[str, Any]:
        """What is under way, for people."""
        return {"call": self._call.id, "rpc": self._call.method, "seconds": round(self.seconds, 3)}

    def __enter__(self) -> None:
        self._began = time.monotonic()
        self._tokens = log.rpc.set(self._call.method), log.container.set("")
        self._under_way.add(self)
        if self._call.method in _LONG:
            self._note("rpc-began", rpc=self._call.method, call=self._call.id)

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        try:
            self._under_way.discard(self)
            self._leave(error)
        finally:
            method, container = self._tokens
            log.rpc.reset(method)
            log.container.reset(container)

    def _leave(self, error: BaseException | None) -> None:
        if error is None:
            if self._call.method not in _QUIET:
                self._tell()
            return
        known = self._known(error)
        if known is None:
            self._tell(cancelled=True)
            return
        self._tell(code=known.code.name, error=str(known))
        if known is not error:
            raise known from error

    def _tell(self, **how: Any) -> None:
        """One line of the journal: what was asked, of which container if the request came so far, and how it went."""
        call, container = self._call, log.container.get()
        whose = {"container": container} if container else {}
        ms = round(self.seconds * 1000, 1)
        _log.debug("%s in %s ms: %s", call.method, ms, how.get("error", "cancelled" if "cancelled" in how else "done"))
        self._note("rpc", rpc=call.method, call=call.id, ms=ms, **whose, **how)

    def _known(self, error: BaseException) -> ShimError | None:
        if isinstance(error, ShimError):
            return error
        if isinstance(error, TimeoutError):
            return DeadlineExceeded("serve", self._call.method, "it took longer than its deadline")
        if not isinstance(error, Exception):
            return None
        _log.error("%s failed unforeseen", self._call.method, exc_info=error)
        return Unforeseen(
            "serve",
            self._call.method,
            f"{type(error).__name__}: {error}"[:500],
            hint="this is a bug; containerd's log has more",
        )


def boundary(note: Callable[..., None], under_way: set[Boundary] | None = None) -> Callable[[Call], Any]:
    """A factory of boundaries for the server, all writing to one journal. Those entered and not left are in ``under_way``."""
    calls: set[Boundary] = set() if under_way is None else under_way
    return lambda call: Boundary(note, call, calls)
