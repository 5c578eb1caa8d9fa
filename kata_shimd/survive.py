"""Joins what a pod needs to outlive its daemon: keeper, journals, record of state, and the taking up of all of it.

A composition root beside `assembly`, for pods whose configuration has a keeper. The same code serves the first daemon and each
later one: begin with what is on record, and with nothing if nothing is.
"""

import asyncio
import base64
import logging
import os
import socket
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kata_shimd import wire
from kata_shimd.agent.client import AgentClient
from kata_shimd.api import agent as pb
from kata_shimd.config.model import Config, Keeping, ShimdConfig
from kata_shimd.durable.caller import DurableClient, KeyOf
from kata_shimd.durable.channel import DurableSink, DurableSource
from kata_shimd.durable.keeper import LISTEN, Keeper, own_argv
from kata_shimd.durable.memory import leave, new
from kata_shimd.durable.once import Once
from kata_shimd.durable.store import NAME, VERSION, Store
from kata_shimd.durable.streams import consumed
from kata_shimd.durable.systemd import LAUNCH, MOUNTS, SystemdKeeper, launch, mounts
from kata_shimd.durable.tape import HEAD, Tape
from kata_shimd.durable.trial import Trial
from kata_shimd.errors import HostFailed, InvalidArgument, ShimError
from kata_shimd.host.process import Gate, kill, spawn
from kata_shimd.host.undo import undo
from kata_shimd.ledger import BOOT, Kind, Ledger
from kata_shimd.net.network import PodNetwork
from kata_shimd.notify import Notifier
from kata_shimd.pod import memory
from kata_shimd.pod.container import Container
from kata_shimd.pod.events import Event, OutOfMemory
from kata_shimd.pod.pod import Pod
from kata_shimd.pod.ports import Publisher
from kata_shimd.pod.values import Told
from kata_shimd.task.publisher import dial
from kata_shimd.ttrpc import Client, Service
from kata_shimd.ttrpc.server import Server
from kata_shimd.vm import qemu, sockets
from kata_shimd.vm.machine import HALF

if TYPE_CHECKING:
    from kata_shimd.daemon import Arguments

_log = logging.getLogger(__name__)

#: Keys of the record.
BOOTED: Final = "booted"
_CONTAINER: Final = "container/"
#: The last counters of a container that has ended.
_STATS: Final = "stats/"
_EVENT: Final = "event/"
_SPOKEN: Final = "spoken/"
_FORWARD: Final = "forward/"
_GIVEN_UP: Final = "given_up"
_REMOVING: Final = "removing"
#: The call of the agent's whose reply has become the last event of its kind: no later daemon may tell it again.
_TOLD: Final = "told"
BOOTSTRAP: Final = "bootstrap"

#: The fd of the keeper's control socket, and the name of its process in the ledger.
_AGENT: Final = "agent"
_EVENTS: Final = "events"
KEEPER: Final = "keeper"
#: The ledger's value that says that systemd is to start later daemons, and how many may die (`launcher/src/unit/end.rs`).
KEEPING: Final = "keeping"


def key_of(method: str, payload: bytes) -> bytes | None:
    """What of a request to the agent makes it the same as one that an earlier daemon has made."""
    match method:
        case "WriteStdin":
            # Where the process has come to is known by the reply alone; by now there may be more to write.
            request = wire.decode(pb.WriteStreamRequest, payload)
            return f"{request.container_id}/{request.exec_id}".encode()
        case "Check" | "StatsContainer" | "GetGuestDetails":
            return None
        case _:
            return payload


def keeping(setting: Keeping, *, in_unit: bool) -> Keeping:
    """Who keeps this pod.

    :raises InvalidArgument: not who is asked for
    """
    match setting, in_unit:
        case (Keeping.AUTO, _):
            return Keeping.SYSTEMD if in_unit else Keeping.LAUNCHER
        case (Keeping.SYSTEMD, False):
            hint = "install the unit with `kata-shimd systemd install`, or set keeper to auto or launcher"
            raise InvalidArgument("choose keeper", "systemd", "this pod's daemon is no unit of systemd's", hint=hint)
        case (Keeping.LAUNCHER, True):
            hint = "set keeper to auto or systemd, or take the unit away with `kata-shimd systemd remove`"
            raise InvalidArgument("choose keeper", "launcher", "this pod's daemon is a unit of systemd's", hint=hint)
    return setting


def keeping_value(shimd: ShimdConfig) -> dict[str, int]:
    """What the launcher is to know of it when a daemon has died."""
    return {"deaths": shimd.keeper_deaths, "within": shimd.keeper_seconds}


def keeper_argv(
    shimd: ShimdConfig, fd: int, next_connection: int, launcher: Path, pod_dir: Path, argv: Sequence[str]
) -> list[str]:
    """How a keeper is begun (`docs/contracts.md`) that starts later daemons with ``argv``."""
    limits = ("--deaths", str(shimd.keeper_deaths), "--within", str(shimd.keeper_seconds))
    options = ("--pod-dir", str(pod_dir), "--next-connection", str(next_connection), *limits)
    spare = ("--spare",) if shimd.keeper_spare else ()
    return [str(launcher), "keep", str(fd), *options, *spare, "--", *argv]


def launcher_in(argv: Sequence[str]) -> Path:
    """The one that a daemon with this command line calls its own."""
    return Path(argv[argv.index("--launcher") + 1])


class Survival:
    """All that outlives this daemon. ``inherited``: the fds it was born with; ``notifier``: its systemd, if that keeps."""

    def __init__(
        self,
        arguments: "Arguments",
        config: Config,
        ledger: Ledger,
        inherited: Mapping[str, int],
        notifier: Notifier | None = None,
    ) -> None:
        self._arguments, self._config, self._ledger, self._inherited = arguments, config, ledger, inherited
        self.store = Store(arguments.pod_dir / NAME)
        systemd = SystemdKeeper(notifier, self._admit, Trial(ledger)) if notifier is not None else None
        self._systemd = systemd
        self.keeper: Keeper = systemd or Keeper(self._begin_keeper, self._admit)
        self.once = Once(self.store, self._remember, self._undo)
        self._tapes: dict[str, Tape] = {}
        self._server: Server | None = None
        self._pod: Pod | None = None

    @property
    def is_first(self) -> bool:
        """Whether this is the pod's first daemon, which the launcher waits for."""
        return "ready" in self._inherited

    @property
    def booted(self) -> bool:
        """Whether the guest had been told what pod it is."""
        return bool(self.store.get(BOOTED))

    def set_booted(self) -> None:
        self.store.put(BOOTED, True)
        self.store.flush()

    def settle(self) -> None:
        """This daemon has all that its pod has. One that was on trial stays from here on, so the one before it is past.

        :raises HostFailed: the record of state cannot be written
        """
        self.keeper.settled(self._arguments.launcher)
        self.store.rewrite(VERSION)

    def has_machine(self) -> bool:
        """Whether an earlier daemon got so far as to put a machine on record that can be gone on with; it may never have been let
        go. Half a clone cannot be: how far it had come only its daemon knew.
        """
        if self._ledger.state.values.get(HALF):
            return False
        records = (record.fields for record in self._ledger.state.live.values())
        return any(fields.get("what") == qemu.WHAT and "pid" in fields for fields in records)

    async def clear_boot(self) -> None:
        """Undo what a daemon made of a boot that it died over.

        :raises HostFailed: something would not go
        """
        ledger, launcher = self._ledger, self._arguments.launcher
        await PodNetwork.clear(ledger, launcher)
        if any(record.scope == BOOT for record in ledger.state.live.values()):
            await undo(ledger, launcher, BOOT, step="undo boot", obj=self._arguments.sandbox_id)
            sockets.clear(ledger.pod_dir)
        if ledger.state.values.get(HALF):
            ledger.set(HALF, False)

    # --- the agent's channel -----------------------------------------------------------------------------------------

    def left_channel(self) -> socket.socket | None:
        """The channel to the agent, if an earlier daemon had one."""
        return self._left(_AGENT)

    def agent_channel(self, sock: socket.socket, on_lost: Callable[[ShimError], None]) -> Client:
        used = consumed(self.keeper) | {int(self.store.get(_TOLD) or 0)}
        return self._channel(_AGENT, sock, key_of, on_lost, used)

    async def event_channel(self, address: str) -> Client:
        """To containerd: the connection that an earlier daemon had, with what it had sent, or a new one."""
        sock = self._left(_EVENTS) or await dial(address)
        return self._channel(_EVENTS, sock, lambda _method, payload: payload, lambda _error: None, ())

    def _left(self, name: str) -> socket.socket | None:
        fd = self.keeper.held(name)
        return None if fd is None else socket.socket(fileno=fd)

    def _channel(
        self,
        name: str,
        sock: socket.socket,
        key: KeyOf,
        on_lost: Callable[[ShimError], None],
        used: Iterable[int],
    ) -> Client:
        """A client on ``sock`` that takes up the calls of an earlier daemon's on it."""
        journal_name = f"{name}-journal"
        journal = self.keeper.held(journal_name)
        if journal is None or self.keeper.held(name) is None:
            journal = new(HEAD)
            self.keeper.hold(journal_name, journal)
        # The channel is held last: one that is held has its journal.
        self.keeper.hold(name, sock.fileno())
        tape = Tape(journal)

        def lost(error: ShimError) -> None:
            self.keeper.release(name)
            self.keeper.release(journal_name)
            tape.close()
            on_lost(error)

        barrier = self.store.flush
        return DurableClient(sock, tape, barrier=barrier, key_of=key, consumed=used, on_lost=lost)

    # --- joining -----------------------------------------------------------------------------------------------------

    def services(self, plain: Iterable[Service]) -> Iterator[Service]:
        return map(self.once.service, plain)

    def publisher(self, inner: Publisher) -> Publisher:
        """Whenever something is told, what it tells of is on record."""
        return _Remembering(inner, self._remember, lambda call: self.store.put(_TOLD, call))

    def restore(self, pod: Pod, agent: AgentClient) -> None:
        """Give ``pod`` the past that is on record. From here on its changes are recorded."""
        self._pod = pod
        pod.restore(dict(self.store.under(_CONTAINER)), agent)
        for container_id, stats in self.store.under(_STATS):
            if (container := pod.containers.get(container_id)) is not None:
                container.last_stats = wire.decode(pb.StatsContainerResponse, base64.b64decode(stats))

    def waiting_events(self) -> dict[int, bytes]:
        return {int(number): base64.b64decode(event) for number, event in self.store.under(_EVENT)}

    def abandoned(self) -> dict[str, Any]:
        """What an `Abandonment` of an earlier daemon has recorded, and how ours does."""
        return {
            "spoken": dict(self.store.under(_SPOKEN)),
            "record": self._record_spoken,
            "given_up": self.store.get(_GIVEN_UP) or (),
            "record_given_up": self._record_given_up,
            "record_removing": self._record_removing,
        }

    def _record_spoken(self, connection: str, container_ids: Collection[str]) -> None:
        self.store.put(_SPOKEN + connection, sorted(container_ids) or None)

    def forwards(self) -> list[str]:
        """The execs that carry forwarded connections (`net.forward`)."""
        return [name for name, _ in self.store.under(_FORWARD)]

    def record_forward(self, name: str, *, there: bool) -> None:
        self.store.put(_FORWARD + name, True if there else None)

    def _record_given_up(self, container_ids: Collection[str]) -> None:
        self.store.put(_GIVEN_UP, sorted(container_ids) or None)

    def removing(self) -> list[str]:
        """Containers whose removal an earlier daemon had begun."""
        return list(self.store.get(_REMOVING) or ())

    def _record_removing(self, container_ids: Collection[str]) -> None:
        """At once: a connection that asked for it is forgotten next, and a container of the same name may come after it."""
        self.store.put(_REMOVING, sorted(container_ids) or None)
        try:
            self.store.flush()
        except HostFailed as error:
            leave(error)

    def record_event(self, number: int, event: bytes | None) -> None:
        self.store.put(f"{_EVENT}{number}", None if event is None else base64.b64encode(event).decode())

    def start(self, server: Server) -> None:
        """Take up the connections that the keeper holds, and let it accept more."""
        self._server = server
        held = {name: fd for name, fd in self._inherited.items() if name not in ("ready", KEEPER)}
        self.keeper.start(self._inherited.get(KEEPER), held)
        if self._systemd is not None and self.is_first:
            self._keep_at(self._systemd)

    def _keep_at(self, systemd: SystemdKeeper) -> None:
        """The launcher is told last: a daemon of which not everything is kept has no successor."""
        systemd.keep((LISTEN, BOOTSTRAP))
        systemd.hold(LAUNCH, launch(own_argv(), os.environb))
        systemd.hold(MOUNTS, mounts())
        self._ledger.set(KEEPING, keeping_value(self._config.shimd))

    def lost(self, connection: str) -> None:
        """A connection has ended."""
        self.keeper.release(connection)
        self.keeper.release(f"j{connection[1:]}")
        self.once.forget(connection)
        tape = self._tapes.pop(connection, None)
        if tape is not None:
            tape.close()

    async def _undo(self, method: str, request: Any) -> None:
        """Daemons have died over a request. Of the others containerd's Delete takes away what there may be."""
        if method == "Start" and request.exec_id and self._pod is not None and request.id in self._pod.containers:
            await self._pod.booted()
            await self._pod.container(request.id).undo_start_exec(request.exec_id)

    # --- recording ---------------------------------------------------------------------------------------------------

    def _remember(self) -> None:
        """Put into the record what has changed of the containers."""
        if self._pod is None:
            return
        containers = self._pod.containers.items()
        now: dict[str, Any] = {_CONTAINER + name: memory.of_container(container) for name, container in containers}
        now |= {_STATS + name: _last_stats(container) for name, container in containers if container.init.life.ended}
        gone = [
            key
            for kind in (_CONTAINER, _STATS)
            for name, _ in self.store.under(kind)
            if (key := kind + name) not in now
        ]
        for key, value in (*now.items(), *((key, None) for key in gone)):
            if self.store.get(key) != value:
                self.store.put(key, value)

    # --- the keeper --------------------------------------------------------------------------------------------------

    def _begin_keeper(self, fd: int, next_connection: int, argv: Sequence[str]) -> None:
        for record in list(self._ledger.state.live.values()):
            if record.kind == Kind.PROCESS and record.fields.get("what") == KEEPER:
                # One that only hangs would go on some day, and there would be two.
                kill(record.fields.get("pid", 0), record.fields.get("start"))
                self._ledger.undone(record.n)
        pod_dir = self._arguments.pod_dir
        spawn(
            self._ledger,
            Gate(launcher=self._arguments.launcher),
            keeper_argv(self._config.shimd, fd, next_connection, launcher_in(argv), pod_dir, argv),
            what=KEEPER,
            stderr=Path(pod_dir / "keeper.stderr"),
            pass_fds=(fd,),
        )

    def _admit(self, name: str, connection: int, journal: int) -> None:
        assert self._server is not None
        try:
            tape = Tape(journal)
        except HostFailed as error:
            _log.error("connection %s cannot be taken up: %s", name, error)
            self.keeper.release(name)
            os.close(connection)
            return
        self._tapes[name] = tape
        self._server.adopt(
            socket.socket(fileno=connection),
            name,
            source=partial(DurableSource, tape),
            sink=partial(DurableSink, tape, self.store.flush),
        )


def _last_stats(container: Container) -> str | None:
    """The guest may have forgotten them by the time a later daemon is asked."""
    return None if container.last_stats is None else base64.b64encode(wire.encode(container.last_stats)).decode()


class _Remembering:
    """A publisher before which the pod's state is put on record, with the event itself in the same line."""

    def __init__(self, inner: Publisher, remember: Callable[[], None], told: Callable[[int], None]) -> None:
        self._inner, self._remember, self._told = inner, remember, told
        self._loop = asyncio.get_running_loop()

    def publish(self, event: Event) -> None:
        self._remember()
        if isinstance(event, OutOfMemory) and isinstance(event.container_id, Told):
            self._told(event.container_id.call)
        self._inner.publish(event)
