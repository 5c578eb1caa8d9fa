"""The network of one pod: its namespace, the wires from there to the VM, and what the guest has been told of them.

Begun before the VM, so that what is there then is there at boot; `follow` sees to what comes later. Must never happen: a pod that
fails because its network changed, or a guest that is told of an interface it does not have.
"""

import socket
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from kata_shimd import supervise
from kata_shimd.errors import Code, InvalidArgument, ShimError
from kata_shimd.host.undo import undo
from kata_shimd.ledger import Ledger
from kata_shimd.net import forward, namespace, plan
from kata_shimd.net.changes import Changes
from kata_shimd.net.namespace import Namespace
from kata_shimd.net.picture import Picture
from kata_shimd.net.plan import Model, Wire
from kata_shimd.net.wiring import SCOPE, Made, Note, Wiring
from kata_shimd.pod.network import ConnectAgent, ForwardRecord, GuestNetwork, Interface, NetworkAgent, Nic, NicPlug

#: Ledger values by index of the link: its device's PCI path, empty for one that was there at boot.
_WIRED: Final = "nic/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the spec and the configuration say of the pod's network.

    ``path`` is the namespace's, empty for a new one, None when the pod is to be in the host's. ``needs_address``: an interface
    that is there at the start and has none is an error, as nobody will give it one later.
    """

    path: str | None
    model: Model = Model.TCFILTER
    new_namespace: bool = True
    queues: int = 1
    vhost: bool = True
    needs_address: bool = False


class PodNetwork:
    """The pod's network from before the VM until after it."""

    def __init__(
        self, space: Namespace, changes: Changes, wiring: Wiring, settings: Settings, ledger: Ledger, note: Note
    ) -> None:
        self._space, self._changes, self._wiring, self._settings = space, changes, wiring, settings
        self._ledger, self._note = ledger, note
        self._made: dict[int, Made] = {}
        self._paths: dict[int, str] = {}
        self._told = GuestNetwork()
        self._refused: set[str] = set()
        self._picture = Picture()
        #: How often the namespace was looked at: once, and again for each time that something was heard.
        self.looks = 0

    @classmethod
    async def open(cls, settings: Settings, ledger: Ledger, launcher: Path, note: Note) -> "PodNetwork | None":
        """Find or make the namespace, and wire what is there. None when the VM stays in the daemon's namespace.

        :raises InvalidArgument: there is no such namespace, or the configuration contradicts itself
        :raises Unimplemented: it is the host's, or has an interface that no VM can be given
        :raises HostFailed: with the step; what was made is on record
        """
        if not settings.new_namespace:
            _check_none(settings)
            return None
        if settings.path is None:
            raise namespace.host_network("the spec has no network namespace")
        space = namespace.find(settings.path) if settings.path else await namespace.create(ledger)
        with ExitStack() as failed:
            failed.callback(space.close)
            network = await cls._of(space, settings, ledger, launcher, note)
            failed.callback(network._changes.close)
            failed.callback(network.hand_over)
            await network._begin()
            failed.pop_all()
        return network

    @classmethod
    async def adopt(
        cls, settings: Settings, ledger: Ledger, launcher: Path, note: Note, *, told: bool = True
    ) -> "PodNetwork | None":
        """Take over the network that another daemon opened, with the same settings. What is wired stays as it is; what has changed
        since is found by `follow`, which looks once before it waits. ``told``: whether the guest knows of it.

        :raises InvalidArgument, HostFailed: the namespace has gone or cannot be read
        """
        if settings.path is None or not settings.new_namespace:
            return None
        space = namespace.find(settings.path or str(ledger.pod_dir / namespace.NAME))
        with ExitStack() as failed:
            failed.callback(space.close)
            network = await cls._of(space, settings, ledger, launcher, note)
            failed.callback(network._changes.close)
            await network._recall(told=told)
            failed.pop_all()
        return network

    @staticmethod
    async def clear(ledger: Ledger, launcher: Path) -> None:
        """Take away every wire of a network that no VM has got.

        :raises HostFailed: something would not go
        """
        for scope in {record.scope for record in ledger.state.live.values() if record.scope.startswith(SCOPE)}:
            await undo(ledger, launcher, scope, step="undo network interface", obj=scope)
        for key in [key for key in ledger.state.values if key.startswith(_WIRED)]:
            ledger.set(key, None)

    @classmethod
    async def _of(
        cls, space: Namespace, settings: Settings, ledger: Ledger, launcher: Path, note: Note
    ) -> "PodNetwork":
        changes = await Changes.of(space)  # first, so that nothing happens between looking and listening
        wiring = Wiring(space, ledger, launcher, queues=settings.queues, vhost=settings.vhost, note=note)
        return cls(space, changes, wiring, settings, ledger, note)

    @property
    def namespace(self) -> Path:
        """Where QEMU is to be: a path that is true as long as the network is open."""
        return self._space.pinned

    @property
    def nics(self) -> tuple[Nic, ...]:
        """The devices that the VM is to be born with."""
        return tuple(made.nic for made in self._made.values())

    def hand_over(self) -> None:
        """QEMU has its descriptors, or will never have them: close ours."""
        for made in self._made.values():
            made.close()

    async def plug_in(self, plug: NicPlug) -> None:
        """Plug the devices into a VM that was born without them.

        :raises VmFailed, DeadlineExceeded: one of them would not go in; `unplugged` when that VM is given up
        """
        for index, made in self._made.items():
            self._paths[index] = await plug.plug_nic(made.nic)
            self._remember(index, self._paths[index])

    def unplugged(self) -> None:
        """That VM is no more; another is born with the devices."""
        self._paths.clear()
        for index in self._made:
            self._remember(index, "")

    def close(self) -> None:
        self._changes.close()
        self._space.close()

    async def tell(self, agent: NetworkAgent) -> None:
        """Tell the guest of its interfaces, then of its routes and neighbours (`kata.md` §3.2).

        :raises ShimError: as every call of the agent; the guest may know a part
        """
        wanted = self._wanted()
        known = {item.mac: item for item in self._told.interfaces}
        for interface in wanted.interfaces:
            if known.get(interface.mac) != interface:
                await agent.update_interface(interface)
        if wanted.routes != self._told.routes:
            await agent.update_routes(wanted.routes)
        if wanted.neighbours and wanted.interfaces != self._told.interfaces:
            await self._tell_neighbours(agent, wanted)
        self._told = wanted

    async def follow(self, agent: NetworkAgent, plug: NicPlug, ended: Callable[[], Awaitable[object]]) -> None:
        """Until the VM has ended, give it what appears in the namespace and tell the guest what changes there."""
        if self._settings.model is Model.NONE:
            return
        while await supervise.first_of(ended(), self._changes.wait()) == 1:
            await self._attempt(self._catch_up(agent, plug))

    async def forward(
        self,
        agent: ConnectAgent,
        sandbox_id: str,
        ended: Callable[[], Awaitable[object]],
        record: ForwardRecord | None = None,
    ) -> None:
        """Until the VM has ended, carry connections to the namespace's loopback on to the guest's."""
        await supervise.first_of(ended(), forward.forward(self._space, agent, sandbox_id, self._note, record))

    # --- inside ------------------------------------------------------------------------------------------------------

    async def _begin(self) -> None:
        self._picture = await self._look()
        if self._settings.needs_address:
            plan.require_addresses(self._picture, str(self._space.path))
        todo = plan.plan(self._picture, self._settings.model)
        for error in todo.refused:
            raise error
        for wire in todo.wires:
            self._made[wire.link.index] = await self._wiring.make(wire)
            self._remember(wire.link.index, "")

    def _remember(self, index: int, path: str | None) -> None:
        """A later daemon has to know which links are wired, and where those sit that came late; None forgets."""
        self._ledger.set(f"{_WIRED}{index}", path)

    async def _recall(self, *, told: bool) -> None:
        self._picture = await self._look()
        values = self._ledger.state.values.items()
        known = {int(key.removeprefix(_WIRED)): path for key, path in values if key.startswith(_WIRED)}
        known = {index: path for index, path in known.items() if path is not None}
        for wire in plan.plan(self._picture, self._settings.model).wires:
            if wire.link.index in known:
                self._made[wire.link.index] = Made(wire, Nic(id=wire.id, mac=wire.mac, fds=()))
        self._paths = {index: path for index, path in known.items() if path}
        if told:
            self._told = self._wanted()
        self._changes.suspect()

    async def _look(self) -> Picture:
        """Mostly there is nothing but the loopback, and then netlink's library need not be there either."""
        self.looks += 1
        names = [name for _, name in await self._space.run(socket.if_nameindex)]
        if names == ["lo"] or self._settings.model is Model.NONE:
            return Picture()
        from kata_shimd.net import rtnl

        return await self._space.run(rtnl.scan)

    def _wanted(self) -> GuestNetwork:
        wanted = plan.guest_network(self._picture, [made.wire for made in self._made.values()])
        index = {made.wire.mac: made.wire.link.index for made in self._made.values()}
        found = tuple(self._with_path(item, index[item.mac]) for item in wanted.interfaces)
        return replace(wanted, interfaces=found)

    def _with_path(self, interface: Interface, index: int) -> Interface:
        return replace(interface, device_path=self._paths.get(index, ""))

    async def _tell_neighbours(self, agent: NetworkAgent, wanted: GuestNetwork) -> None:
        """An agent that does not know the call is one that needs none (`kata.md` §5.4)."""
        try:
            await agent.add_neighbours(wanted.neighbours)
        except ShimError as error:
            if error.code is not Code.UNIMPLEMENTED:
                raise

    async def _attempt(self, step: Awaitable[None]) -> None:
        """One step of several that do not depend on each other: a failure is told, and the pod goes on."""
        try:
            await step
        except ShimError as error:
            self._note("network-failed", error=str(error))

    async def _catch_up(self, agent: NetworkAgent, plug: NicPlug) -> None:
        self._picture = await self._look()
        there = {link.index for link in self._picture.links}
        for index in [index for index in self._made if index not in there]:
            await self._attempt(self._lose(index, plug))
        todo = plan.plan(self._picture, self._settings.model, self._made)
        for error in todo.refused:
            self._refuse(error)
        for wire in todo.wires:
            await self._attempt(self._add(wire, plug))
        await self.tell(agent)

    async def _add(self, wire: Wire, plug: NicPlug) -> None:
        await self._plug(await self._make(wire), plug)

    async def _make(self, wire: Wire) -> Made:
        try:
            return await self._wiring.make(wire)
        except ShimError:
            await self._wiring.undo(wire)
            raise

    async def _plug(self, made: Made, plug: NicPlug) -> None:
        """Give the VM a device; one that it does not take is undone, to be tried again when something else changes."""
        index = made.wire.link.index
        try:
            self._paths[index] = await plug.plug_nic(made.nic)
        except ShimError:
            made.close()
            await self._wiring.undo(made.wire)
            raise
        made.close()
        self._made[index] = made
        self._remember(index, self._paths[index])

    async def _lose(self, index: int, plug: NicPlug) -> None:
        """The link was taken away. A device that was there at boot cannot be unplugged, and stays without a cable."""
        made = self._made.pop(index)
        self._remember(index, None)
        self._note("nic-lost", link=made.wire.link.name)
        if self._paths.pop(index, None) is not None:
            await plug.unplug_nic(made.nic.id)
        await self._wiring.undo(made.wire)

    def _refuse(self, error: ShimError) -> None:
        """Say once what cannot be had."""
        if error.obj not in self._refused:
            self._refused.add(error.obj)
            self._note("nic-refused", error=str(error))


def _check_none(settings: Settings) -> None:
    if settings.model is not Model.NONE:
        raise InvalidArgument(
            "join network", "disable_new_netns", f"it goes with the model none, not with {settings.model}",
            hint='set internetworking_model = "none", or disable_new_netns = false',
        )  # fmt: skip
