"""Joins what makes a pod a clone of a template: the VM's side, the guest's agent, and the place where a template is made.

Part of the composition. Nobody depends on it: whatever is missing, refused, busy or failed, the pod is booted instead, and the
journal says why.
"""

import asyncio
import json
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from kata_shimd.agent.client import AgentClient, Deadlines
from kata_shimd.errors import HostFailed, ShimError
from kata_shimd.host import process
from kata_shimd.host.process import Gate
from kata_shimd.journal import Journal
from kata_shimd.ledger import NAME as LEDGER
from kata_shimd.ledger import Kind, Ledger
from kata_shimd.net.network import PodNetwork
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
            template = await self._obtain(spec, ledger)
        if template is None:
            return None
        try:
            vm = await self._clone(spec, template, ground, ledger, journal, gate, network)
        except ShimError as error:
            self._note("clone-failed", error=str(error))
            self._give_up(template.key)
            if network is not None:
                network.unplugged()
            return None
        finally:
            os.close(template.memory)
        vm.provisional = False
        self._note("cloned", key=template.key)
        return vm

    async def make(self, spec: VmSpec, ledger: Ledger | None = None) -> int:
        """Make the template of pods with ``spec``, in the place of one that is there; its lock is the caller's.

        :param ledger: the pod's, which then answers for what is made too
        :returns: bytes of guest RAM that a clone will copy
        :raises ShimError: it came to nothing
        """
        site = self._site
        gate = Gate(launcher=site.launcher, die_with_us=True)
        name = key.name(key.inputs(spec))
        self._store.begin()
        self._store.sweep(held=name)
        async with _stage(site, name, ledger) as (stage, journal):
            return await maker.make(spec, self._store, stage, journal, gate, self._group, site.budgets, self._prepare)

    # --- inside ------------------------------------------------------------------------------------------------------

    def _obstacle(self, spec: VmSpec, network: PodNetwork | None) -> str:
        ports = key.original(spec).root_ports - 1
        if network is not None and len(network.nics) > ports:
            return f"{len(network.nics)} interfaces are more than the {ports} that can be plugged in"
        return unfit(spec)

    async def _obtain(self, spec: VmSpec, ledger: Ledger) -> Template | None:
        """The template, made if there is none; None when there can be none now."""
        try:
            name = key.name(key.inputs(spec))
            self._store.begin()
            return self._find(name) or await self._first(name, spec, ledger)
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

    async def _first(self, name: str, spec: VmSpec, ledger: Ledger) -> Template | None:
        if self._store.resting(name):
            self._note("template-passed-over", why=f"template {name} came to nothing not long ago")
            return None
        with self._store.making(name) as ours:
            if not ours:
                self._note("template-passed-over", why=f"template {name} is being made")
                return None
            if (made := self._find(name)) is None:
                await self._make_noted(name, spec, ledger)
                made = self._find(name)
            return made

    async def _make_noted(self, name: str, spec: VmSpec, ledger: Ledger) -> None:
        self._note("template-making", key=name)
        begun = time.monotonic()
        try:
            used = await self.make(spec, ledger)
        except ShimError:
            self._store.failed(name)
            raise
        self._note("template-made", key=name, ms=round((time.monotonic() - begun) * 1000), mib=used >> 20)

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

    def _give_up(self, name: str) -> None:
        """A template of which a clone came to nothing is worth no second try; it may be made anew later."""
        self._store.failed(name)
        try:
            self._store.remove(name)
        except ShimError as error:
            self._note("template-failed", error=str(error))


# --- where a template is made ------------------------------------------------------------------------------------------


class _Mirror(Ledger):
    """A ledger whose every record is the pod's too: whoever undoes the pod undoes this, and the other way round."""

    def __init__(self, directory: Path, pod: Ledger) -> None:
        super().__init__(directory)
        self._pod = pod
        self.mirrored: dict[int, int] = {}

    def plan(self, kind: Kind, *, scope: str = "pod", needs: Iterable[int] = (), **fields: Any) -> int:
        needed = tuple(needs)
        theirs = self._pod.plan(kind, needs=[self.mirrored[each] for each in needed], **_as_template(kind, fields))
        ours = super().plan(kind, scope=scope, needs=needed, **fields)
        self.mirrored[ours] = theirs
        return ours

    def made(self, n: int, **identity: Any) -> None:
        self._pod.made(self.mirrored[n], **identity)
        super().made(n, **identity)


def _as_template(kind: Kind, fields: dict[str, Any]) -> dict[str, Any]:
    """A later daemon looks for its own QEMU by this name."""
    return {**fields, "what": f"template-{fields['what']}"} if kind is Kind.PROCESS else fields


@asynccontextmanager
async def _stage(site: Site, name: str, pod: Ledger | None) -> AsyncIterator[tuple[Ledger, Journal]]:
    """A pod's directory in which no pod is, undone at the end; what a maker that died has left there is undone first."""
    digest = sha256(f"template\0{name}".encode()).hexdigest()[:20]
    directory = site.run_dir / "pods" / digest
    await _undo(site.launcher, directory)
    record = pod.plan(Kind.DIR, path=str(directory)) if pod else 0
    _lay_out(directory, name)
    stage = _Mirror(directory, pod) if pod else Ledger(directory)
    journal = Journal(site.run_dir / "journal" / f"{digest}.jsonl")
    journal.begin("daemon", pid=os.getpid(), namespace=NAMESPACE, id=f"template-{name}", address="")
    try:
        yield stage, journal
    finally:
        with ExitStack() as last:
            last.callback(journal.close)
            last.callback(stage.close)
        await asyncio.shield(_undo(site.launcher, directory))
        if pod is not None and isinstance(stage, _Mirror):
            for each in (*stage.mirrored.values(), record):
                pod.undone(each)


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
