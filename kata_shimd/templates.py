"""Joins what makes a pod a clone of a template: the VM's side, the guest's agent, and the place where a template is made.

Part of the composition. Nobody depends on it: whatever is missing, refused or failed, the pod is booted instead, and the journal
says why. What was missing is ordered when the pod has booted (`ordering.py`).
"""

import asyncio
import json
import os
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Final

from kata_shimd import ordering
from kata_shimd.agent.client import AgentClient, Deadlines
from kata_shimd.config.load import Told
from kata_shimd.errors import HostFailed, ShimError
from kata_shimd.host import process
from kata_shimd.host.process import Gate, Process
from kata_shimd.journal import Journal
from kata_shimd.ledger import NAME as LEDGER
from kata_shimd.ledger import Ledger
from kata_shimd.net.network import PodNetwork
from kata_shimd.ordering import Order
from kata_shimd.vm import machine
from kata_shimd.vm.machine import Ground, Machine
from kata_shimd.vm.spec import Budgets, Transport, VmSpec
from kata_shimd.vm.template import clone, key, maker
from kata_shimd.vm.template.store import Refused, Store, Template

Note = Callable[..., None]
#: As much as Kata gives a clone.
SEED: Final = 512
#: Where `kata-shimd ps` shows a template that is being made.
NAMESPACE: Final = "kata-shimd"


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where templates lie and are made: the run directory, the launcher, deadlines as they are for the accelerator."""

    path: Path
    run_dir: Path
    launcher: Path
    budgets: Budgets
    deadlines: Deadlines


def unfit(spec: VmSpec) -> str:
    """Why a pod with ``spec`` can have no template; empty when it can."""
    if spec.initrd is None:
        return "a guest that boots by systemd may have made what all copies of it would share"
    if spec.transport is not Transport.VIRTIO_SERIAL:
        return f"the agent is reached over {spec.transport.value}, not virtio-serial"
    return ""


class Templates:
    """The templates of one node, for one pod or for the command."""

    def __init__(self, site: Site, group: asyncio.TaskGroup, note: Note) -> None:
        self._site, self._group, self._note = site, group, note
        self._store = Store(site.path)
        #: The key of the template that the pod would have been cloned from.
        self.missing = ""

    async def clone(
        self,
        spec: VmSpec,
        ground: Ground,
        ledger: Ledger,
        journal: Journal,
        gate: Gate,
        network: PodNetwork | None,
    ) -> Machine | None:
        """The pod's VM as a clone that is itself by now, or None: it is to be booted."""
        if why := self._obstacle(spec, network):
            self._note("template-passed-over", why=why)
            return None
        with ground.phases("template"):
            template = self._obtain(spec)
        if template is None:
            return None
        try:
            vm = await self._clone(spec, template, ground, ledger, journal, gate, network)
        except ShimError as error:
            ledger.set(machine.HALF, False)
            self._failed(template.key, error)
            if network is not None:
                network.unplugged()
            return None
        finally:
            os.close(template.memory)
        vm.provisional = False
        self._note("cloned", key=template.key)
        ledger.set(machine.HALF, False)  # last: from here on it may be another daemon's
        return vm

    async def order(self, told: Told, cgroups: tuple[Path, ...] = ()) -> None:
        """Have the template made that the pod has missed, if it has and nobody is at it. A machine that is as the pod's annotations
        have it, and not the node's configuration, may be the only one of its kind: the second that misses it orders.

        :param cgroups: where the maker is to be; empty: with us
        """
        if not (name := self.missing):
            return
        try:
            if self._store.is_at_work(name):
                self._note("template-passed-over", why=f"template {name} is being made")
            elif ordering.ours(told.annotations) and not self._store.missed(name):
                self._note("template-passed-over", why=f"template {name} is made when a second pod misses it")
            else:
                maker = ordering.send(Order(name, told), self._site.run_dir, self._site.launcher, cgroups)
                self._group.create_task(_reap(maker), name="template maker")
                self._note("template-ordered", key=name, pid=maker.pid)
        except ShimError as error:
            self._note("template-failed", error=str(error))

    async def make(self, spec: VmSpec, *, unasked: bool = False) -> int:
        """Make the template of pods with ``spec``, in the place of one that is there; its lock is the caller's. A journal of its
        own says how it went.

        :param unasked: only where there is room for it
        :returns: bytes of guest RAM that a clone will copy
        :raises ShimError: it came to nothing
        """
        site, begun = self._site, time.monotonic()
        gate = Gate(launcher=site.launcher, die_with_us=True)
        name = key.name(key.inputs(spec))
        self._store.begin()
        self._store.sweep(held=name)
        async with _stage(site, name) as (stage, journal):
            try:
                if unasked:
                    ordering.make_room(self._store, spec.memory_mib)
                journal.write("template-making", key=name)
                used = await maker.make(
                    spec, self._store, stage, journal, gate, self._group, site.budgets, self._prepare
                )
            except ShimError as error:
                journal.write("template-failed", error=str(error))
                raise
            journal.write("template-made", key=name, ms=round((time.monotonic() - begun) * 1000), mib=used >> 20)
            return used

    # --- inside ------------------------------------------------------------------------------------------------------

    def _obstacle(self, spec: VmSpec, network: PodNetwork | None) -> str:
        ports = key.original(spec).root_ports - 1
        if network is not None and len(network.nics) > ports:
            return f"{len(network.nics)} interfaces are more than the {ports} that can be plugged in"
        return unfit(spec)

    def _obtain(self, spec: VmSpec) -> Template | None:
        """The template; None when there is none now."""
        try:
            name = key.name(key.inputs(spec))
            self._store.begin()
            if (found := self._find(name)) is None:
                self._miss(name)
            return found
        except ShimError as error:
            self._note("template-failed", error=str(error))
            return None

    def _find(self, name: str) -> Template | None:
        try:
            return self._store.find(name)
        except Refused as error:
            self._note("template-refused", key=name, error=str(error))
            self._store.remove(name)
            return None

    def _miss(self, name: str) -> None:
        if not self._store.resting(name):
            self._note("template-passed-over", why=f"template {name} is not made yet")
            self.missing = name
        elif self._store.is_at_work(name):
            self._note("template-passed-over", why=f"template {name} is being made")
        else:
            why = self._store.why_failed(name)
            self._note(
                "template-passed-over",
                why=f"template {name} came to nothing not long ago" + (f": {why}" if why else ""),
            )

    async def _clone(
        self,
        spec: VmSpec,
        template: Template,
        ground: Ground,
        ledger: Ledger,
        journal: Journal,
        gate: Gate,
        network: PodNetwork | None,
    ) -> Machine:
        async def plug(vm: Machine) -> None:
            if network is not None:
                await network.plug_in(vm)

        budgets = self._site.budgets
        vm = await clone.start(
            spec, template, ground, ledger, journal, gate, self._group, replace(budgets, dial=budgets.clone), plug
        )
        try:
            with ground.phases("identity"):
                await self._make_another(vm)
        except BaseException:
            await vm.retire(ledger)
            raise
        return vm

    async def _make_another(self, vm: Machine) -> None:
        """What the guest was, all clones were: it becomes one of its own before anybody else speaks to it."""
        async with self._agent(await vm.dial()) as agent:
            try:
                await agent.become_another(os.urandom(SEED))
            except ShimError as error:
                await vm.settle()
                raise await vm.failure(error.step, error.obj, error.cause) from error

    async def _prepare(self, sock: socket.socket) -> None:
        async with self._agent(sock) as agent:
            await agent.prepare()

    @asynccontextmanager
    async def _agent(self, sock: socket.socket) -> AsyncIterator[AgentClient]:
        """A session of its own, which ends with the block."""
        agent = AgentClient(sock, self._site.deadlines)
        try:
            yield agent
        finally:
            agent.close()

    def _failed(self, name: str, error: ShimError) -> None:
        """A template of which a clone came to nothing is worth no second try. It may be made anew later, a bad one at once."""
        if bad := isinstance(error, Refused):
            self._note("template-refused", key=name, error=str(error))
        else:
            self._note("clone-failed", error=str(error))
            self._store.failed(name, f"a clone of it failed: {error}")
        try:
            self._store.remove(name)
            if bad:
                self._miss(name)
        except ShimError as trouble:
            self._note("template-failed", error=str(trouble))


# --- where a template is made ------------------------------------------------------------------------------------------


def stage_name(name: str) -> str:
    """Of the directory and the journal of the template ``name`` while it is made."""
    return sha256(f"template\0{name}".encode()).hexdigest()[:20]


async def _reap(maker: Process) -> None:
    try:
        await maker.wait()
    finally:
        maker.forget()


@asynccontextmanager
async def _stage(site: Site, name: str) -> AsyncIterator[tuple[Ledger, Journal]]:
    """A pod's directory in which no pod is, undone at the end; what a maker that died has left there is undone first."""
    directory = site.run_dir / "pods" / stage_name(name)
    await _undo(site.launcher, directory)
    _lay_out(directory, name)
    stage = Ledger(directory)
    journal = Journal(site.run_dir / "journal" / f"{directory.name}.jsonl")
    journal.begin("daemon", pid=os.getpid(), namespace=NAMESPACE, id=f"template-{name}", address="")
    try:
        yield stage, journal
    finally:
        with ExitStack() as last:
            last.callback(journal.close)
            last.callback(stage.close)
        await asyncio.shield(_undo(site.launcher, directory))


def _lay_out(directory: Path, name: str) -> None:
    whose = {
        "op": "open",
        "v": 1,
        "pod": directory.name,
        "namespace": NAMESPACE,
        "id": f"template-{name}",
        "address": "",
    }
    try:
        directory.mkdir(mode=0o700, parents=True)
        (directory / LEDGER).touch(mode=0o600, exist_ok=False)
        (directory / LEDGER).write_text(json.dumps(whose) + "\n")
    except OSError as error:
        raise HostFailed("make place for template", str(directory), error.strerror or "") from error


async def _undo(launcher: Path, directory: Path) -> None:
    """:raises HostFailed: something would not go"""
    if not directory.exists():
        return
    status, said = await process.run((launcher, "undo", directory), what="undo")
    if status:
        raise HostFailed("undo template's VM", str(directory), said or f"undo ended with {status}")
