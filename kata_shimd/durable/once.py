"""Each request has one outcome, whichever daemons it takes.

A request that changes something leaves its reply on record together with the change. One that is taken up again by a later daemon
finds its reply there, or is begun anew knowing so (`channel.again`). A request that daemons keep dying over is refused in the end.
"""

import base64
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Any, Final

from kata_shimd.durable.caller import operation
from kata_shimd.durable.channel import again
from kata_shimd.durable.store import Store
from kata_shimd.errors import Code, ShimError
from kata_shimd.ttrpc import Call, Method, Service

#: A request that was begun so often, each time by a daemon that died, is not begun again. Fewer than the deaths that end a pod,
#: and more than chance brings together while a slow guest is at work on it.
MAX_TRIES: Final = 8
#: They only wait, so nobody dies of them, and they are under way whenever a daemon dies.
_HARMLESS: Final = frozenset({"Wait"})


class Poisonous(ShimError):
    """Daemons have died over this request."""

    code = Code.INTERNAL


#: ``undo(method, request)``: a request is given up that may have been half done.
Undo = Callable[[str, Any], Awaitable[None]]


async def _leave(_method: str, _request: Any) -> None:
    """Nothing is left of half a request."""


class Once:
    """Wraps the methods of a service. ``remember`` puts into the store what a change has left to be known."""

    def __init__(self, store: Store, remember: Callable[[], None], undo: Undo = _leave) -> None:
        self._store, self._remember, self._undo = store, remember, undo
        #: Keys of replies that have been sent, or that nobody waits for.
        self._spent: list[str] = []

    def service(self, service: Service) -> Service:
        methods = {name: self._method(name, method) for name, method in service.methods.items()}
        return Service(service.name, methods)

    def _method(self, name: str, method: Method[Any, Any]) -> Method[Any, Any]:
        if method.streaming or name in _HARMLESS:
            return method
        if not method.detached:
            return replace(method, handler=partial(self._counted, method))
        return replace(method, handler=partial(self._once, method), encode=bytes)

    def _counted(self, method: Method[Any, Any], call: Call, request: Any) -> Any:
        self._count(call)
        result = method.handler(call, request)
        self._remember()
        return result

    async def _once(self, method: Method[Any, Any], call: Call, request: Any) -> bytes:
        key = f"done/{call.id}"
        if (known := self._store.get(key)) is not None:
            return base64.b64decode(known)
        await self._admit(call, request)
        # The task is this request's alone: what it asks of the guest is asked in this name.
        operation.set(call.id)
        result = method.handler(call, request)
        if isinstance(result, Awaitable):
            result = await result
        reply: bytes = method.encode(result)
        self._finish(call, key, reply)
        return reply

    async def _admit(self, call: Call, request: Any) -> None:
        """:raises Poisonous: it has been tried too often, and is undone now, which is tried once"""
        try:
            self._count(call)
        except Poisonous:
            if int(self._store.get(f"tries/{call.id}")) == MAX_TRIES:
                await self._undo(call.method, request)
            raise

    def _finish(self, call: Call, key: str, reply: bytes) -> None:
        """The change, and the reply, in one line. The reply is sent before anything else happens, so the next may drop it."""
        self._remember()
        for spent in self._spent:
            self._store.put(spent, None)
        self._store.put(key, base64.b64encode(reply).decode())
        self._store.flush()
        self._spent = [key]
        if self._store.get(f"tries/{call.id}") is not None:
            self._spent.append(f"tries/{call.id}")

    def _count(self, call: Call) -> None:
        """:raises Poisonous: it has been tried too often"""
        if not again.get():
            return
        key = f"tries/{call.id}"
        tries = int(self._store.get(key) or 0) + 1
        self._store.put(key, tries)
        self._store.flush()
        if tries >= MAX_TRIES:
            raise Poisonous("serve", f"{call.service}/{call.method}", f"{tries} daemons have died over it")

    def forget(self, connection: str) -> None:
        """A connection has ended: nobody waits for its replies."""
        for prefix in (f"done/{connection}/", f"tries/{connection}/"):
            self._spent += [prefix + rest for rest, _ in self._store.under(prefix)]
