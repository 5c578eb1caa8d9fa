"""The machine: shared directory → virtiofsd → QEMU → QMP → the agent's channel, and the end of all of them.

Satisfies the pod's `Vm` port. Nothing lives only here: processes and mounts are in the ledger, sockets are found by path, and
what a later daemon could not know is set as the ledger's values, so that it can `adopt` the machine. Must never happen: a wait
that outlasts QEMU, an exit that is told twice, a failure that does not say what QEMU and the guest said last.
"""

import asyncio
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kata_shimd.errors import DeadlineExceeded, HostFailed, ShimError, VmFailed
from kata_shimd.host.process import UNKNOWN_STATUS, Gate, Process
from kata_shimd.journal import Journal
from kata_shimd.ledger import Ledger
from kata_shimd.pod.network import Nic
from kata_shimd.pod.values import VmExit
from kata_shimd.vm import dial, nic, qemu, share, sockets, virtiofsd, vsock
from kata_shimd.vm.channel import Channel
from kata_shimd.vm.console import Console
from kata_shimd.vm.diagnosis import Diagnosis
from kata_shimd.vm.monitor import Monitor
from kata_shimd.vm.phases import Phases
from kata_shimd.vm.race import Ended, while_lives
from kata_shimd.vm.spec import Budgets, Transport, VmSpec, Wires

CONSOLE_LOG: Final = "console.log"
#: Ledger values.
SECRET: Final = "agent-secret"
CID: Final = "vsock-cid"
#: Whether the VM on record is a clone that is not itself yet, which no later daemon could go on with.
HALF: Final = "half-clone"

_TAIL: Final = 4000
_DEFAULT_BUDGETS: Final = Budgets()


class Machine:
    """A virtual machine from QEMU's start to its end."""

    def __init__(
        self,
        pod_dir: Path,
        journal: Journal,
        budgets: Budgets,
        processes: tuple[Process, Process | None],
        console: Console,
        agent: Channel,
        phases: Phases,
    ) -> None:
        self._pod_dir, self._journal, self._budgets = pod_dir, journal, budgets
        self._qemu, self._virtiofsd = processes
        self._console, self._agent, self._phases = console, agent, phases
        self._monitor: Monitor | None = None
        self._words = qemu.LastWords()
        #: Whether another takes its place when it ends, so that its end is not the pod's.
        self.provisional = False
        self._born = time.monotonic()
        self._end: asyncio.Future[VmExit] = asyncio.get_running_loop().create_future()

    # --- the pod's port ----------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        return self._qemu.pid

    async def wait(self) -> VmExit:
        """Wait for the end; any number of tasks may."""
        return await asyncio.shield(self._end)

    async def stop(self) -> None:
        """End the VM: QMP quit, SIGTERM, SIGKILL, each with its budget. It has ended when this returns.

        :raises HostFailed: QEMU outlived even SIGKILL, so the kernel holds it
        """
        steps: tuple[tuple[str, Callable[[], Awaitable[None]], float], ...] = (
            ("quit", self._quit, self._budgets.quit),
            ("SIGTERM", lambda: self._signal(signal.SIGTERM), self._budgets.term),
            ("SIGKILL", lambda: self._signal(signal.SIGKILL), self._budgets.killed),
        )
        for name, act, seconds in steps:
            if await self._ends(act, seconds):
                return
            self._journal.write("vm-stop-escalates", after=name, seconds=seconds)
        raise HostFailed("stop VM", f"QEMU, pid {self.pid}", "it does not die of SIGKILL", hint="see the kernel's log")

    def kill(self) -> None:
        """End it now; `wait` returns soon after."""
        self._qemu.kill()

    async def answers(self) -> None:
        """:raises VmFailed: QMP does not answer; without a deadline of its own"""
        await self.monitor.status()

    async def retire(self, ledger: Ledger) -> None:
        """End it and virtiofsd as if they had never been, so that another VM can be started in their place."""
        for process in filter(None, (self._qemu, self._virtiofsd)):
            process.kill()
            await process.wait()
            ledger.undone(process.record)
        await self.wait()
        sockets.clear(self._pod_dir)

    # --- the network's port ------------------------------------------------------------------------------------------

    async def plug_nic(self, device: Nic) -> str:
        """:raises VmFailed, DeadlineExceeded: QEMU would not, or has no free port"""
        return await nic.plug(self.monitor, device)

    async def unplug_nic(self, nic_id: str) -> None:
        """:raises VmFailed, DeadlineExceeded: QEMU would not, or the guest does not let go"""
        await nic.unplug(self.monitor, nic_id, timeout=self._budgets.hotplug)

    # --- for the daemon ----------------------------------------------------------------------------------------------

    @property
    def end(self) -> "asyncio.Future[VmExit]":
        """For `while_lives`; nobody else may set or cancel it."""
        return self._end

    @property
    def ended(self) -> bool:
        return self._end.done()

    @property
    def console(self) -> Console:
        return self._console

    @property
    def monitor(self) -> Monitor:
        """:raises VmFailed: QEMU's monitor was never reached"""
        if self._monitor is None:
            raise VmFailed("use QMP", str(self._pod_dir / sockets.MONITOR), "not connected")
        return self._monitor

    async def dial(self) -> socket.socket:
        """Reach the agent: a connected non-blocking socket whose next byte is the agent's.

        :raises VmFailed: the VM ended, or the guest did not answer; with everything that is known
        """
        with self._phases("dial"):
            try:
                async with while_lives(self._end):
                    return await self._agent.dial(self._budgets)
            except Ended:
                raise await self.failure("dial agent", str(self._agent)) from None
            except DeadlineExceeded as error:
                raise await self.failure("dial agent", str(self._agent), error.cause) from error
            except VmFailed as error:
                await self.settle()
                raise await self.failure("dial agent", str(self._agent), error.cause) from error

    async def diagnose(self) -> Diagnosis:
        """Everything that is known, within `Budgets.last_words`."""
        ended = self._end.result() if self._end.done() else None
        return Diagnosis(
            alive=ended is None,
            cause=ended.cause if ended else "",
            status="" if ended else await self._status(),
            stderr=self._qemu.stderr_tail(_TAIL),
            console=self._console.tail(_TAIL),
            phases=self._phases.seconds,
        )

    async def settle(self) -> None:
        """After a connection broke: mostly that was the first sign of QEMU's end, so let the end be seen."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._budgets.last_words):
                await self.wait()

    async def failure(self, step: str, obj: str, cause: str = "", *, hint: str = "") -> VmFailed:
        """An error about this VM that says what it said last, and where the rest of the story is."""
        known = str(await self.diagnose())
        hint = hint or f"see kata-shimd why {self._pod_dir.name}"
        return VmFailed(step, obj, f"{cause}; {known}" if cause else known, hint=hint)

    # --- inside ------------------------------------------------------------------------------------------------------

    def watch(self, group: asyncio.TaskGroup) -> None:
        """Wait for the ends of both processes in ``group``."""
        group.create_task(self._watch_qemu(), name="qemu")
        if self._virtiofsd is not None:
            group.create_task(self._watch_virtiofsd(self._virtiofsd), name="virtiofsd")

    async def connect_monitor(self) -> None:
        """:raises Ended: QEMU ended first"""
        async with while_lives(self._end):
            path = self._pod_dir / sockets.MONITOR
            self._monitor = await Monitor.connect(path, self._on_event, timeout=self._budgets.qmp)

    def _on_event(self, event: str, data: Mapping[str, Any]) -> None:
        self._words.take(event, data)
        self._journal.write("qmp-event", name=event, data=str(data))

    async def _watch_qemu(self) -> None:
        try:
            status = await self._qemu.wait()
            if self._monitor is not None:
                await self._monitor.ended(self._budgets.last_words)
        finally:
            await self._let_go()
        end = self._describe(status)
        if self.provisional:
            self._journal.write("clone-ended", cause=end.cause, **end.detail)
        else:
            self._journal.write("qemu-ended", cause=end.cause, **end.detail)
        self._end.set_result(end)

    async def _let_go(self) -> None:
        """Close what is ours. A daemon that ends before QEMU does leaves it running, for another to adopt."""
        if self._qemu.returncode is None:
            self._qemu.forget()
        if self._monitor is not None:
            await self._monitor.close()
        self._console.close()

    def _describe(self, status: int) -> VmExit:
        self._blame_virtiofsd()
        stderr = self._qemu.stderr_tail(_TAIL)
        detail = {
            "status": str(status),
            "reason": self._words.reason,
            "stderr": stderr,
            "console": self._console.tail(_TAIL),
            "uptime_s": f"{time.monotonic() - self._born:.2f}",
        }
        return VmExit(qemu.cause(status, self._words, stderr), time.time_ns(), detail)

    def _blame_virtiofsd(self) -> None:
        """A virtiofsd that failed takes QEMU with it, whichever end is seen first."""
        if self._virtiofsd is not None and self._virtiofsd.returncode not in (None, 0, UNKNOWN_STATUS):
            self._words.killed_for = self._words.killed_for or _lost_share(self._virtiofsd)

    async def _watch_virtiofsd(self, process: Process) -> None:
        """Without its files the guest cannot go on, and virtiofsd cannot be started again under it."""
        try:
            status = await process.wait()
        finally:
            if process.returncode is None:
                process.forget()
        if status in (0, UNKNOWN_STATUS):
            with suppress(TimeoutError):
                async with asyncio.timeout(self._budgets.last_words):
                    await self.wait()
        if not self._end.done() and self._qemu.returncode is None:
            self._words.killed_for = _lost_share(process)
            self._journal.write("virtiofsd-ended", status=status, stderr=process.stderr_tail(_TAIL))
            self._qemu.kill()

    async def _ends(self, act: Callable[[], Awaitable[None]], seconds: float) -> bool:
        """Whether the VM ends within ``seconds`` of ``act``."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await act()
                await self.wait()
        return self._end.done()

    async def _quit(self) -> None:
        if self._monitor is None:
            raise TimeoutError
        with suppress(VmFailed, DeadlineExceeded):  # QEMU may close the connection before it answers
            await self._monitor.execute("quit")

    async def _signal(self, number: signal.Signals) -> None:
        self._qemu.kill(number)

    async def _status(self) -> str:
        try:
            async with asyncio.timeout(self._budgets.last_words):
                return await self.monitor.status()
        except (ShimError, TimeoutError) as error:
            return f"QMP does not answer ({error or 'timeout'})"


def _lost_share(process: Process) -> str:
    said = process.stderr_tail(_TAIL).rpartition("\n")[2]
    return f"virtiofsd ended with status {process.returncode}" + (f": {said}" if said else "")


# --- boot ------------------------------------------------------------------------------------------------------------


async def boot(
    spec: VmSpec,
    pod_dir: Path,
    ledger: Ledger,
    journal: Journal,
    gate: Gate,
    group: asyncio.TaskGroup,
    budgets: Budgets = _DEFAULT_BUDGETS,
    *,
    ground: "Ground | None" = None,
) -> Machine:
    """Start the VM of ``spec`` and connect to its monitor. What it made remains the ledger's to undo, also after a failure.

    :param gate: the launcher, and the namespace, cgroups and OOM score of the pod; user and privileges are chosen here
    :param group: where the watchers of the VM live, as long as the VM
    :param ground: what is there already, because another VM came to nothing
    :raises HostFailed: something on the host is missing or failed
    :raises VmFailed: QEMU did not come up; with what it said
    """
    ground = ground or await prepare(spec, pod_dir, ledger, journal, budgets)
    return await start(spec, ground, ledger, journal, gate, group, budgets)


@dataclass(frozen=True, slots=True)
class Ground:
    """What a VM stands on, which outlasts it if it fails: the shared directory and who is to serve it, if there is one."""

    phases: Phases
    served: tuple[virtiofsd.Server, share.SharedDirectory] | None = None


async def prepare(spec: VmSpec, pod_dir: Path, ledger: Ledger, journal: Journal, budgets: Budgets) -> Ground:
    """:raises HostFailed: something is missing or failed"""
    phases = Phases(journal)
    with phases("check"):
        qemu.check_files(spec)
        server = await virtiofsd.Server.probe(spec.share, timeout=budgets.virtiofsd)
    with phases("share"):
        return Ground(phases, (server, share.make(ledger, pod_dir)))


async def start(
    spec: VmSpec,
    ground: Ground,
    ledger: Ledger,
    journal: Journal,
    gate: Gate,
    group: asyncio.TaskGroup,
    budgets: Budgets,
    *,
    memory: int | None = None,
) -> Machine:
    """Start QEMU, and virtiofsd where a directory is shared, and connect to the monitor; see `boot`.

    :param memory: a file of guest RAM, all of whose size is the guest's; None lets QEMU make one
    """
    machine = await spawn(spec, ground, ledger, journal, gate, group, budgets, memory=memory)
    with ground.phases("qmp"):
        await reach(machine, spec)
    return machine


async def spawn(
    spec: VmSpec,
    ground: Ground,
    ledger: Ledger,
    journal: Journal,
    gate: Gate,
    group: asyncio.TaskGroup,
    budgets: Budgets,
    *,
    memory: int | None = None,
) -> Machine:
    """`start` without waiting for the monitor."""
    with ground.phases("spawn"):
        machine = await _spawn(spec, ground, ledger, journal, gate, budgets, memory)
    machine.watch(group)
    return machine


async def _spawn(
    spec: VmSpec,
    ground: Ground,
    ledger: Ledger,
    journal: Journal,
    gate: Gate,
    budgets: Budgets,
    memory: int | None,
) -> Machine:
    """Bind every socket, begin to listen to the console, then let virtiofsd and QEMU go."""
    pod_dir, files = ledger.pod_dir, None
    async with AsyncExitStack() as undo:
        console = Console(pod_dir / CONSOLE_LOG, limit=spec.console_log_bytes)
        undo.callback(console.close)
        with ExitStack() as ours:
            if ground.served is not None:
                server, directory = ground.served
                files = server.start(ours, directory, ledger, gate, debug=spec.debug)
                undo.push_async_callback(_kill, files.process)
            wires = _wires(spec, ours, pod_dir, files.socket.fileno() if files else None, memory)
            channel = _channel(wires, ledger)
            console.attach(sockets.connect(pod_dir / sockets.CONSOLE))
            process = qemu.start(spec, wires, ledger, gate, needs=(files.process.record,) if files else ())
        undo.pop_all()
    processes = (process, files.process if files else None)
    return Machine(pod_dir, journal, budgets, processes, console, channel, ground.phases)


async def _kill(process: Process) -> None:
    process.kill()
    await process.wait()


def _wires(spec: VmSpec, ours: ExitStack, pod_dir: Path, share_fd: int | None, memory: int | None) -> Wires:
    """Everything QEMU listens on. ``ours`` closes our copies when QEMU has its own."""

    def listen(name: str) -> int:
        return ours.enter_context(sockets.listen(pod_dir / name)).fileno()

    claimed = vsock.claim() if spec.transport is Transport.VSOCK else None
    if claimed is not None:
        ours.callback(os.close, claimed.vhost_fd)
    return Wires(
        monitor=listen(sockets.MONITOR),
        debug_monitor=listen(sockets.DEBUG_MONITOR),
        console=listen(sockets.CONSOLE),
        share=share_fd,
        memory=memory,
        agent=listen(sockets.AGENT) if claimed is None else None,
        vsock=claimed,
        extra_monitor=listen(sockets.EXTRA_MONITOR) if spec.extra_monitor else None,
    )


def _channel(wires: Wires, ledger: Ledger) -> Channel:
    """What it takes to reach the agent is the ledger's: a later daemon has to know it."""
    secret = dial.new_secret()
    if wires.vsock is not None:
        ledger.set(CID, wires.vsock.cid)
    else:
        ledger.set(SECRET, secret.hex())
    return Channel(ledger.pod_dir / sockets.AGENT, secret, wires.vsock.cid if wires.vsock else None)


async def reach(machine: Machine, spec: VmSpec) -> None:
    """Connect QMP, or end QEMU and say why not."""
    try:
        await machine.connect_monitor()
    except Ended:
        raise await machine.failure("start QEMU", str(spec.qemu), hint=qemu.closed_files(spec)) from None
    except ShimError as error:
        if not isinstance(error, DeadlineExceeded):
            await machine.settle()
        failed = await machine.failure("start QEMU", str(spec.qemu), error.cause, hint=qemu.closed_files(spec))
        machine.kill()
        raise failed from error
    except BaseException:
        machine.kill()
        raise
