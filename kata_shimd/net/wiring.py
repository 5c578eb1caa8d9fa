"""Makes wires: every link and queueing discipline on record before it is there, then descriptors for QEMU.

A step runs in a thread inside the namespace; records are written between steps, by the loop.
"""

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from kata_shimd.errors import FailedPrecondition
from kata_shimd.host.undo import undo
from kata_shimd.ledger import Kind, Ledger
from kata_shimd.net import tap
from kata_shimd.net.namespace import Namespace
from kata_shimd.net.plan import Way, Wire
from kata_shimd.pod.network import Nic

Note = Callable[..., None]
#: Begins the scope of one wire's records.
SCOPE: Final = "nic/"


@dataclass(frozen=True, slots=True)
class Made:
    """A wire that is there, and the device for the VM."""

    wire: Wire
    nic: Nic

    def close(self) -> None:
        """Close our copies of the descriptors; QEMU has its own."""
        for fd in (*self.nic.fds, *self.nic.vhost_fds):
            os.close(fd)


class Wiring:
    """Makes wires in one namespace. ``queues`` is how many each device has, ``vhost`` whether the kernel may serve them."""

    def __init__(
        self, namespace: Namespace, ledger: Ledger, launcher: Path, *, queues: int, vhost: bool, note: Note
    ) -> None:
        self._namespace, self._ledger, self._launcher = namespace, ledger, launcher
        self._queues, self._vhost, self._note = queues, vhost, note

    async def make(self, wire: Wire) -> Made:
        """Connect one link.

        :raises HostFailed: with the step; what was made is on record
        :raises FailedPrecondition: somebody else handles the link's frames
        """
        fds = await _MAKERS[wire.way](self, wire)
        with ExitStack() as failed:
            for fd in fds:
                failed.callback(os.close, fd)
            vhost = tap.open_vhost(len(fds)) if self._vhost else ()
            failed.pop_all()
        self._note("nic", link=wire.link.name, kind=wire.link.kind, way=wire.way.value, mac=wire.mac, vhost=bool(vhost))
        return Made(wire, Nic(id=wire.id, mac=wire.mac, fds=fds, vhost_fds=vhost))

    async def _mirror(self, wire: Wire) -> tuple[int, ...]:
        from kata_shimd.net import rtnl

        link, run = wire.link, self._namespace.run
        if await run(partial(rtnl.has_ingress, link.index)):
            raise FailedPrecondition(
                "redirect frames", link.name, "it has an ingress queueing discipline already",
                hint="another program filters there: take its filter away, or use internetworking_model = \"macvtap\"",
            )  # fmt: skip
        made = self._plan(wire, Kind.LINK, wire.name)
        fds = await run(partial(tap.open_tap, wire.name, self._queues, multi_queue=self._queues > 1))
        with ExitStack() as failed:
            for fd in fds:
                failed.callback(os.close, fd)
            index = await run(partial(rtnl.index_of, wire.name))
            self._ledger.made(made, ifindex=index)
            await run(partial(rtnl.set_up_tap, index, wire.name, link.mtu))
            self._plan(wire, Kind.QDISC, link.name, ifindex=link.index)
            await run(partial(rtnl.mirror, link.index, link.name, index))
            await run(partial(rtnl.mirror, index, wire.name, link.index))
            failed.pop_all()
        return fds

    async def _macvtap(self, wire: Wire) -> tuple[int, ...]:
        from kata_shimd.net import rtnl

        made = self._plan(wire, Kind.LINK, wire.name)
        index = await self._namespace.run(partial(rtnl.add_macvtap, wire.name, wire.link.index))
        self._ledger.made(made, ifindex=index)
        return await self._namespace.run(partial(tap.open_macvtap, wire.name, index, self._queues))

    async def _open_macvtap(self, wire: Wire) -> tuple[int, ...]:
        link = wire.link
        return await self._namespace.run(partial(tap.open_macvtap, link.name, link.index, self._queues))

    async def _open_tap(self, wire: Wire) -> tuple[int, ...]:
        """It was made with one queue or for several, which is not for us to choose."""
        several = wire.link.multi_queue
        queues = self._queues if several else 1
        return await self._namespace.run(partial(tap.open_tap, wire.link.name, queues, multi_queue=several))

    def _plan(self, wire: Wire, kind: Kind, name: str, **fields: Any) -> int:
        return self._ledger.plan(kind, scope=_scope(wire), netns=str(self._namespace.path), name=name, **fields)

    async def undo(self, wire: Wire) -> None:
        """Take away what was made for one wire while the pod lives on.

        :raises HostFailed: something would not go
        """
        step, name = "undo network interface", wire.link.name
        await undo(self._ledger, self._launcher, _scope(wire), step=step, obj=name)


def _scope(wire: Wire) -> str:
    return f"{SCOPE}{wire.link.index}"


_MAKERS: Final = {
    Way.MIRROR: Wiring._mirror,
    Way.MACVTAP: Wiring._macvtap,
    Way.OPEN_MACVTAP: Wiring._open_macvtap,
    Way.TAP: Wiring._open_tap,
}
