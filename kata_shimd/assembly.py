"""Joins the edges: from configuration and the launcher's words to a pod that serves.

A composition root, with `daemon`: here the north edge, the domain and the south edges meet, and configuration becomes the
values each of them takes. Nothing is decided here that a test would want to vary.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kata_shimd import wire
from kata_shimd.agent.client import AgentClient, Deadlines
from kata_shimd.agent.resuming import ResumingAgent
from kata_shimd.api import bootstrap as pb
from kata_shimd.api import runtime_options, wkt
from kata_shimd.config import Loaded, options
from kata_shimd.config import load as load_config
from kata_shimd.config.layers import File
from kata_shimd.config.model import Accelerator, Timeouts
from kata_shimd.debug.record import RecordingPublisher
from kata_shimd.durable.channel import again
from kata_shimd.durable.streams import KeptStreams
from kata_shimd.errors import InvalidArgument, ShimError, VmFailed
from kata_shimd.host import cgroup
from kata_shimd.host.files import HostFiles
from kata_shimd.host.logger import Loggers
from kata_shimd.host.process import Gate
from kata_shimd.host.stdio import HostStreams
from kata_shimd.journal import Journal
from kata_shimd.ledger import Ledger, Phase
from kata_shimd.net.network import PodNetwork
from kata_shimd.notify import Notifier
from kata_shimd.pod import spec as oci
from kata_shimd.pod import storage
from kata_shimd.pod.pod import Pod
from kata_shimd.pod.ports import South
from kata_shimd.pod.process import Budgets
from kata_shimd.pod.values import GuestStorage, Sandbox
from kata_shimd.podservice import PodService
from kata_shimd.survive import Survival
from kata_shimd.task.abandon import Abandonment
from kata_shimd.task.boundary import Boundary, boundary
from kata_shimd.task.publisher import EventPublisher
from kata_shimd.task.service import TaskService
from kata_shimd.task.serving import services
from kata_shimd.ttrpc.server import Server
from kata_shimd.vm import accel, machine
from kata_shimd.vm.adopt import adopt, end_left
from kata_shimd.vm.phases import Phases
from kata_shimd.vm.spec import VmSpec
from kata_shimd.vmspec import network_settings, vm_budgets, vm_spec

if TYPE_CHECKING:
    from kata_shimd import templates
    from kata_shimd.daemon import Arguments


@dataclass(frozen=True, slots=True)
class Parts:
    """What the daemon has made before anything is joined."""

    loaded: Loaded
    ledger: Ledger
    journal: Journal
    group: asyncio.TaskGroup
    environ: Mapping[str, str]
    #: What outlives the daemon, if anything does.
    survival: Survival | None = None
    #: The systemd whose unit the daemon is, if it is one.
    notifier: Notifier | None = None


@dataclass(frozen=True, slots=True)
class Shim:
    """The joined whole, as far as the daemon has to do with it."""

    pod: Pod
    server: Server
    publisher: EventPublisher
    calls: set[Boundary]
    #: How long the last events, and then the last replies, may take on the way out.
    teardown_step: float
    #: Comes back when the machine, if there is one by now, does what it is told.
    answers: Callable[[], Awaitable[None]]
    #: The pod's network, once there is one; for who looks inside.
    network: Callable[[], PodNetwork | None]


# --- configuration ---------------------------------------------------------------------------------------------------


def configure(bundle: Path, bootstrap: bytes, env_path: str | None, recorded: Sequence[File] | None = None) -> Loaded:
    """The pod's configuration, from containerd's options, files (or what is on record of them) and the sandbox's annotations.

    :raises InvalidArgument: with everything that is wrong
    """
    source = _options(bootstrap)
    notes = oci.annotations(oci.load(bundle))
    env = Path(env_path) if env_path else None
    loaded = load_config(source.config_path, source.config_body, env, notes, recorded=recorded)
    return replace(loaded, warnings=(*source.warnings, *loaded.warnings))


def _options(bootstrap: bytes) -> options.ConfigSource:
    """Options come as one Any, or since containerd 2.3 among the extensions of BootstrapParams; the launcher has told them
    apart and hands on the bytes as they came, so the same test is made here (`containerd.md` §1.5)."""
    if not bootstrap:
        return options.ConfigSource()
    for packed in _packed(bootstrap):
        source = options.pick(packed.type_url, packed.value, _decode_options)
        if source != options.ConfigSource():
            return source
    return options.ConfigSource()


def _packed(bootstrap: bytes) -> list[wkt.Any]:
    try:
        params = wire.decode(pb.BootstrapParams, bootstrap)
    except InvalidArgument:
        params = pb.BootstrapParams()
    if params.extensions or params.containerd_grpc_address or params.containerd_version:
        return [extension.value for extension in params.extensions if extension.value is not None]
    return [wire.decode(wkt.Any, bootstrap)]


def _decode_options(value: bytes) -> tuple[str, bytes]:
    decoded = wire.decode(runtime_options.Options, value)
    return decoded.config_path, decoded.config_body


# --- the pod ---------------------------------------------------------------------------------------------------------


def assemble(arguments: "Arguments", listener: socket.socket | None, parts: Parts) -> Shim:
    """Make the pod and its server. Nothing runs yet."""
    survival = parts.survival
    choice = accel.choose(accel.Setting(parts.loaded.config.shimd.accelerator.value))
    parts.journal.write("accelerator", choice=str(choice.accelerator), why=choice.why)
    timeouts = parts.loaded.config.deadlines(Accelerator(choice.accelerator.value))
    publisher = _publisher(arguments, parts, timeouts)
    recording = RecordingPublisher(publisher, parts.journal.write)
    loggers = _loggers(arguments, parts, timeouts)
    streams = HostStreams(loggers.start, loggers.settle)
    booter = Booter(arguments, parts, choice, timeouts)
    south = South(
        vmm=booter,
        host=HostFiles(parts.ledger, arguments.launcher, arguments.pod_dir / "shared", again=again.get),
        streams=KeptStreams(streams, survival.keeper) if survival else streams,
        publisher=survival.publisher(recording) if survival else recording,
    )
    pod = Pod(
        south,
        parts.group,
        budgets(timeouts),
        note=parts.journal.write,
        on_stopping=lambda: parts.ledger.phase(Phase.STOPPING),
        guest_seccomp=not parts.loaded.config.runtime.disable_guest_seccomp,
    )
    calls: set[Boundary] = set()
    abandonment = Abandonment(parts.group, pod.abandon, **(survival.abandoned() if survival else {}))
    own = PodService(arguments, pod, parts.journal, survival)
    table = services(TaskService(pod), abandonment, {"Describe": own.describe, "Upgrade": own.upgrade})

    def lost(connection: str) -> None:
        abandonment.lost(connection)
        if survival is not None:
            survival.lost(connection)

    server = Server(
        # A keeper accepts for us.
        listener,
        survival.services(table) if survival else table,
        boundary=boundary(parts.journal.write, calls),
        on_lost=lost,
        on_accepting=partial(_accepting, parts.journal),
        outlived=survival is not None,
    )
    if survival is not None:
        survival.restore(pod, booter.agent)
        abandonment.finish(survival.removing(), pod.finish_abandoning)
    parts.group.create_task(publisher.run(), name="publisher")
    return Shim(pod, server, publisher, calls, timeouts.teardown_step, booter.answers, lambda: booter.network)


def _accepting(journal: Journal, trouble: str) -> None:
    if trouble:
        journal.write("accept-failed", error=trouble)
    else:
        journal.write("accepts-again")


def _publisher(arguments: "Arguments", parts: Parts, timeouts: Timeouts) -> EventPublisher:
    address, attempt, survival = parts.environ.get("TTRPC_ADDRESS", ""), timeouts.publish_event, parts.survival
    if survival is None:
        return EventPublisher(address, arguments.namespace, attempt=attempt)
    publisher = EventPublisher(
        address,
        arguments.namespace,
        attempt=attempt,
        record=survival.record_event,
        barrier=survival.store.flush,
        channel=survival.event_channel,
    )
    publisher.restore(survival.waiting_events())
    return publisher


def _loggers(arguments: "Arguments", parts: Parts, timeouts: Timeouts) -> Loggers:
    gate = Gate(launcher=arguments.launcher)
    seconds = {"ready_seconds": timeouts.hotplug, "end_seconds": timeouts.teardown_step}
    return Loggers(parts.ledger, gate, arguments.namespace, **seconds)


def budgets(timeouts: Timeouts) -> Budgets:
    """The domain's share of the deadlines."""
    return Budgets(
        kill=timeouts.kill,
        drain=timeouts.drain,
        reader_stall=timeouts.reader_stall,
        no_progress=timeouts.output_stall,
        execs_end=timeouts.execs_end,
        last_stats=timeouts.stop_agent,
        stop=timeouts.stop_agent,
        create_wait=timeouts.create_wait,
        abandoned_wait=timeouts.abandoned_wait,
        health_interval=timeouts.health_interval,
        follows=timeouts.last_words,
    )


def agent_deadlines(timeouts: Timeouts) -> Deadlines:
    """The agent's share of them."""
    return Deadlines(
        check=timeouts.health,
        create_sandbox=timeouts.create_sandbox,
        create_container=timeouts.create_container,
        usual=timeouts.agent_rpc,
    )


def template_site(path: Path, run_dir: Path, launcher: Path, timeouts: Timeouts) -> "templates.Site":
    """Where templates lie and are made."""
    from kata_shimd import templates

    budgets, deadlines = vm_budgets(timeouts), agent_deadlines(timeouts)
    return templates.Site(path=path, run_dir=run_dir, launcher=launcher, budgets=budgets, deadlines=deadlines)


class Booter:
    """The domain's `Vmm`: boots the machine, or takes over one that an earlier daemon booted, and reaches its agent."""

    def __init__(self, arguments: "Arguments", parts: Parts, choice: accel.Choice, timeouts: Timeouts) -> None:
        self._arguments, self._parts, self._choice, self._timeouts = arguments, parts, choice, timeouts
        deadlines = agent_deadlines(timeouts)
        #: Not attached before the boot is over.
        channel = parts.survival.agent_channel if parts.survival else None
        self.agent = ResumingAgent(None, deadlines, channel) if channel else AgentClient(None, deadlines)
        self.network: PodNetwork | None = None
        self._vm: machine.Machine | None = None
        self._templates: templates.Templates | None = None
        #: Whether the agent has been heard of this daemon already: it has told a clone who it is.
        self._answered = False
        #: Where shims are started, if the pod is elsewhere.
        self._origin: tuple[Path, ...] = ()

    async def answers(self) -> None:
        """:raises ShimError: the machine is there and does not do what it is told"""
        if self._vm is not None and not self._vm.ended:
            await self._vm.answers()

    async def boot(self) -> tuple[machine.Machine, AgentClient]:
        """:raises VmFailed, HostFailed: with step, object, cause and hint; the VM has been told to end, and one that an earlier
        daemon booted has ended: what ran in it is told as lost next
        """
        try:
            return await self._boot()
        except ShimError as error:
            self.agent.fail(error)
            if self._parts.survival is not None:
                await end_left(self._parts.ledger)
            raise

    async def _boot(self) -> tuple[machine.Machine, AgentClient]:
        spec, survival = oci.load(self._arguments.bundle), self._parts.survival
        booted = bool(survival and survival.booted)
        vm, network = await self._machine(spec, booted=booted)
        self.network = network
        try:
            await self._reach(vm, None if booted else self._sandbox(spec), network)
        except BaseException:
            vm.kill()  # nobody will use it, and a guest that does not answer may do anything else
            raise
        if survival is not None:
            survival.set_booted()
            survival.settle()
        self._vm = vm
        self._parts.journal.write("agent-ready")
        if self._templates is not None:
            await self._templates.order(self._parts.loaded.told, self._origin)
        if network is not None:
            self._parts.group.create_task(network.follow(self.agent, vm, vm.wait), name="network")
            if oci.kind(spec) is oci.Kind.SANDBOX:
                served = network.forward(self.agent, self._arguments.sandbox_id, vm.wait, survival)
                self._parts.group.create_task(served, name="forward")
        return vm, self.agent

    async def _machine(self, spec: Mapping[str, Any], *, booted: bool) -> tuple[machine.Machine, PodNetwork | None]:
        """The VM and its network: an earlier daemon's, or new ones. What a daemon left that died before there was a VM is undone,
        as long as no guest has been told what pod it is.

        :raises VmFailed: the VM of a pod that had booted has ended
        """
        survival = self._parts.survival
        groups = self._groups(spec)
        if survival is not None and (booted or survival.has_machine()):
            network = await self._network(spec, PodNetwork.adopt, told=booted)
            if (vm := await self._take_over()) is not None:
                return vm, network
            if network is not None:
                network.close()
            if booted:
                raise VmFailed("take over VM", self._arguments.sandbox_id, "QEMU ended while no daemon was there")
        if survival is not None:
            await survival.clear_boot()
        network = await self._network(spec, PodNetwork.open)
        return await self._make(network, groups), network

    def _groups(self, spec: Mapping[str, Any]) -> tuple[Path, ...]:
        """The control groups of the pod, which this daemon joins: made, or there already from an earlier daemon."""
        if not self._parts.loaded.config.runtime.sandbox_cgroup_only:
            return ()
        self._origin = cgroup.current()
        return cgroup.make(self._parts.ledger, oci.host_cgroups_path(spec))

    async def _network(
        self, spec: Mapping[str, Any], begin: Callable[..., Awaitable[PodNetwork | None]], **how: bool
    ) -> PodNetwork | None:
        parts = self._parts
        settings = network_settings(spec, parts.loaded.config)
        with Phases(parts.journal)("network"):
            return await begin(settings, parts.ledger, self._arguments.launcher, parts.journal.write, **how)

    async def _make(self, network: PodNetwork | None, groups: tuple[Path, ...]) -> machine.Machine:
        """The VM, in the pod's control groups and network namespace, and with the devices that are known by now."""
        parts, budgets = self._parts, vm_budgets(self._timeouts)
        gate = Gate(launcher=self._arguments.launcher, cgroups=groups, die_with_us=parts.survival is None)
        spec = vm_spec(self._arguments.sandbox_id, parts.loaded.config, self._choice)
        if network is not None:
            gate = replace(gate, netns=network.namespace)
        try:
            ground = vm = None
            if parts.loaded.config.factory.enable_template:
                ground = await machine.prepare(spec, self._arguments.pod_dir, parts.ledger, parts.journal, budgets)
                vm = await self._clone(spec, ground, gate, network)
            return vm or await machine.boot(
                replace(spec, nics=network.nics) if network else spec,
                self._arguments.pod_dir,
                parts.ledger,
                parts.journal,
                gate,
                parts.group,
                budgets,
                ground=ground,
            )
        finally:
            if network is not None:
                network.hand_over()

    async def _clone(
        self, spec: VmSpec, ground: machine.Ground, gate: Gate, network: PodNetwork | None
    ) -> machine.Machine | None:
        """The VM from a template, where that works."""
        parts, arguments = self._parts, self._arguments
        from kata_shimd.templates import Templates  # which nobody else needs

        path = parts.loaded.config.factory.template_path
        site = template_site(path, arguments.run_dir, arguments.launcher, self._timeouts)
        self._templates = Templates(site, parts.group, parts.journal.write)
        vm = await self._templates.clone(spec, ground, parts.ledger, parts.journal, gate, network)
        self._answered = vm is not None
        return vm

    async def _take_over(self) -> machine.Machine | None:
        parts, size = self._parts, self._parts.loaded.config.shimd.console_log_size_kib << 10
        budgets = vm_budgets(self._timeouts)
        return await adopt(parts.ledger, parts.journal, parts.group, budgets, console_log_bytes=size)

    async def _reach(self, vm: machine.Machine, sandbox: Sandbox | None, network: PodNetwork | None) -> None:
        """A guest that is reached and then fails is told of with what it said last, like one that never was."""
        left = self._parts.survival.left_channel() if self._parts.survival else None
        self.agent.attach(left or await vm.dial())
        try:
            if not self._answered:
                await self.agent.check()
            if sandbox is not None:
                if network is not None:
                    await network.tell(self.agent)
                await self.agent.create_sandbox(sandbox)
        except ShimError as error:
            self.agent.close()
            await vm.settle()
            raise await vm.failure(error.step, error.obj, error.cause) from error

    def _sandbox(self, spec: Mapping[str, Any]) -> Sandbox:
        return Sandbox(
            sandbox_id=self._arguments.sandbox_id,
            hostname=str(spec.get("hostname") or ""),
            dns=oci.dns(spec),
            storages=(
                GuestStorage("virtio-fs", "kataShared", "virtiofs", str(storage.GUEST_SHARED) + "/"),
                storage.shm(spec),
            ),
            kernel_modules=self._parts.loaded.config.agent.kernel_modules,
        )
