"""One process of a container: its init, or one added by Exec.

The exit rules, in order. The guest's streams are drained first. The exit is set once, and then published. Init's exit comes after
every exec's. It is published before the VM is torn down. If the VM dies, every live process gets 255 at once, never 0. What the
host's reader has not taken is kept until Delete.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kata_shimd import supervise
from kata_shimd.errors import AgentRefused, Code, DeadlineExceeded, FailedPrecondition, NotFound, ShimError, Unavailable
from kata_shimd.pod.lifecycle import EXEC, INIT, Do, Life, State
from kata_shimd.pod.ports import Agent, Sink, Source, Streams
from kata_shimd.pod.pump import Input, Output, output_to
from kata_shimd.pod.values import LOST, Ended, Exit, Snapshot, Stdio

_log = logging.getLogger(__name__)

SIGKILL: Final = 9


@dataclass(frozen=True, slots=True)
class Budgets:
    """Seconds, already scaled to the accelerator."""

    kill: float = 10.0
    drain: float = 10.0
    reader_stall: float = 1.0
    no_progress: float = 10.0
    execs_end: float = 5.0
    last_stats: float = 1.0
    stop: float = 3.0
    create_wait: float = 60.0
    #: As `create_wait`, once `delete` was run; a Create that is on its way all the same needs no guest to arrive.
    abandoned_wait: float = 5.0
    health_interval: float = 5.0
    follows: float = 1.0


class Process:
    """State, streams and end of one process. Verbs of one process take turns; Kill takes none, so a stuck Start can be killed."""

    def __init__(
        self, agent: Agent, container_id: str, exec_id: str, bundle: Path, stdio: Stdio, budgets: Budgets
    ) -> None:
        self.container_id, self.exec_id, self.bundle, self.stdio = container_id, exec_id, bundle, stdio
        self.life = Life(f"{container_id}/{exec_id}" if exec_id else container_id, EXEC if exec_id else INIT)
        self.turn = asyncio.Lock()
        self.pid = 0
        #: When it began at the earliest, in nanoseconds since the epoch: it cannot have ended before.
        self.began = time.time_ns()
        #: The client has said that it sends no more.
        self.stdin_ended = False
        #: Somebody was told that it has been sent SIGKILL.
        self.killed = False
        self._agent = agent
        self._budgets = budgets
        self._exit: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._outputs: tuple[Output, ...] = ()
        self._input: Input | None = None
        self._unused: Sink | None = None
        self._followed = False
        self._tasks: list[asyncio.Task[None]] = []
        self._readers: list[asyncio.Task[None]] = []

    @property
    def process_id(self) -> str:
        """What TaskExit calls it: the exec id, or for init the container id."""
        return self.exec_id or self.container_id

    @property
    def exit(self) -> Exit | None:
        return self._exit.result() if self._exit.done() else None

    async def wait(self) -> Exit:
        """Wait for the end, before or after Start; any number of callers."""
        return await asyncio.shield(self._exit)

    def snapshot(self) -> Snapshot:
        return Snapshot(self.container_id, self.exec_id, self.bundle, self.pid, self.life.state, self.stdio, self.exit)

    def begins(self) -> None:
        """Start is asked for. Of one that is asked for again nobody knows when it began, or whether it has ended."""
        if not self._agent.is_again():
            self.began = time.time_ns()

    def set_exit(self, exit_: Exit) -> bool:
        """Take the step to STOPPED. False when it had been taken before."""
        if self.life.ended:
            return False
        self.life.commit(Do.EXIT)
        self._exit.set_result(exit_)
        return True

    # --- streams -------------------------------------------------------------------------------------------------

    async def open_streams(self, streams: Streams) -> None:
        """Open the host's side. The readers of the FIFOs are there before us, or come later: either is fine."""
        self._into(streams.open_source(self.container_id, self.exec_id, self.stdio.stdin))
        stderr = "" if self.stdio.terminal else self.stdio.stderr
        self._out_to(*await streams.open_sinks(self.container_id, self.exec_id, self.stdio.stdout, stderr))

    async def take_up_streams(self, streams: Streams) -> None:
        """Have the streams that an earlier daemon had."""
        source, out, err = await streams.take_up(self.container_id, self.exec_id, self.stdio)
        self._into(source)
        self._out_to(out, err)

    def _into(self, source: Source | None) -> None:
        self._input = Input(source, self._write_stdin, self._close_stdin)
        if self.stdin_ended:
            self._input.end()

    def _out_to(self, out: Sink | None, err: Sink | None) -> None:
        """A terminal has one output; a logger's second pipe is open all the same, as long as the process has streams."""
        self._outputs = (self._output(self._agent.read_stdout, out),)
        if self.stdio.terminal:
            self._unused = err
        else:
            self._outputs += (self._output(self._agent.read_stderr, err),)

    def _output(self, read: Callable[[str, str, int], Awaitable[bytes]], sink: Sink | None) -> Output:
        return output_to(self._reader(read), sink, stall=self._budgets.reader_stall)

    def _reader(self, read: Callable[[str, str, int], Awaitable[bytes]]) -> Callable[[int], Awaitable[bytes]]:
        return lambda length: read(self.container_id, self.exec_id, length)

    async def _write_stdin(self, data: bytes) -> int:
        return await self._agent.write_stdin(self.container_id, self.exec_id, data)

    async def _close_stdin(self) -> None:
        await self._agent.close_stdin(self.container_id, self.exec_id)

    def close_stdin(self) -> None:
        """CloseIO: never waits, never fails (`users.md` §1, 6)."""
        self.stdin_ended = True
        if self._input is not None:
            self._input.end()

    def recall(self, state: State, pid: int, exit_: Exit | None, *, stdin_ended: bool) -> None:
        """Be the process that an earlier daemon knew."""
        self.life.state, self.pid, self.stdin_ended = state, pid, stdin_ended
        if exit_ is not None:
            self._exit.set_result(exit_)

    async def take_up(
        self,
        streams: Streams,
        group: asyncio.TaskGroup,
        on_exit: Callable[["Process", Exit], Awaitable[None]],
    ) -> None:
        """Take up the streams that an earlier daemon had open, and if it runs, its life."""
        if self.exec_id and self.life.state is State.CREATED:
            return
        if self.life.ended and not streams.has_left(self.container_id, self.exec_id, self.stdio):
            return
        await self.take_up_streams(streams)
        if self.life.ended:
            self._followed = True
            self._pump(group)
        elif self.life.state is not State.CREATED:
            self.follow(group, on_exit)

    # --- the life after Start ------------------------------------------------------------------------------------

    def follow(self, group: asyncio.TaskGroup, on_exit: Callable[["Process", Exit], Awaitable[None]]) -> None:
        """Pump the streams and wait for the end, once, as tasks of the pod."""
        if self._followed:
            return
        self._followed = True
        self._pump(group)
        self._tasks.append(group.create_task(self._until_exit(group, on_exit), name=f"wait {self.life.name}"))

    def _pump(self, group: asyncio.TaskGroup) -> None:
        for output in self._outputs:
            self._readers.append(group.create_task(output.read_guest(), name=f"read {self.life.name}"))
            self._tasks.append(group.create_task(output.write_host(), name=f"write {self.life.name}"))

    async def _until_exit(
        self, group: asyncio.TaskGroup, on_exit: Callable[["Process", Exit], Awaitable[None]]
    ) -> None:
        stdin = group.create_task(self._input.run(), name=f"stdin {self.life.name}") if self._input else None
        await self._drained_or_stalled()
        status, unknown = Ended(LOST), ""
        try:
            status = await self._agent.wait_process(self.container_id, self.exec_id)
        except AgentRefused as error:
            _log.warning("exit of %s is unknown: %s", self.life.name, error)
            unknown = str(error)
        except ShimError:
            return  # the channel is gone, so the VM is: the pod ends every process with 255
        finally:
            if stdin is not None:
                stdin.cancel()
        await self._drain()
        await on_exit(self, Exit(int(status), self._when(status), unknown))

    def _when(self, status: Ended) -> int:
        """When it ended: nobody vouches for what the guest says, so it is a moment of its life. Of an agent that does not say, or
        did not answer: now."""
        now = time.time_ns()
        return min(max(status.at or now, self.began), now)

    async def _drained_or_stalled(self) -> None:
        """Kata's agent forgets a process once waited for, and its output with it: read first, unless our own reader is stuck."""
        for output in self._outputs:
            await supervise.first_of(output.drained.wait(), output.stalled.wait())

    async def _drain(self) -> None:
        for output in self._outputs:
            output.drain()
            await output.wake()
        try:
            async with asyncio.timeout(self._budgets.drain):
                for output in self._outputs:
                    await output.drained.wait()
        except TimeoutError:
            _log.warning("%s: the guest did not end its streams in time; they are cut", self.life.name)
            for reader in self._readers:
                reader.cancel()

    async def finish_streams(self) -> None:
        """At Delete: let the host's reader take what is left, as long as it takes anything at all; then close."""
        if not self._followed:
            self._close_streams()
            return
        for output in self._outputs:
            while not output.closed.is_set() and await self._progresses(output):
                pass
        for task in (*self._tasks, *self._readers):
            task.cancel()
        self._close_unused()

    async def _progresses(self, output: Output) -> bool:
        before = output.taken
        try:
            async with asyncio.timeout(self._budgets.no_progress):
                await output.closed.wait()
        except TimeoutError:
            if output.taken == before:
                _log.warning("%s: nobody reads its output; the rest is dropped", self.life.name)
                return False
        return True

    def _close_streams(self) -> None:
        for output in self._outputs:
            output.close()
        if self._input is not None:
            self._input.close()
        self._close_unused()

    def _close_unused(self) -> None:
        if self._unused is not None:
            self._unused.close()
            self._unused = None

    # --- verbs ---------------------------------------------------------------------------------------------------

    async def signal(self, number: int) -> None:
        """Send a signal through the agent.

        :raises NotFound: it has ended; not where an earlier daemon died over this, for that may be what it ended by
        :raises FailedPrecondition: an exec that has not been started
        :raises DeadlineExceeded, Unavailable: the agent did not carry it out within its budget
        """
        try:
            await self._signal(number)
        except NotFound:
            if not self._agent.is_again():
                raise

    async def _signal(self, number: int) -> None:
        self.life.check_alive("kill")
        if self.exec_id and self.life.state is State.CREATED:
            raise FailedPrecondition("kill", self.life.name, "the exec has not been started")
        try:
            async with asyncio.timeout(self._budgets.kill):
                await self._agent.signal_process(self.container_id, self.exec_id, number)
        except TimeoutError as error:
            raise DeadlineExceeded("kill", self.life.name, "the agent did not answer in time") from error
        except AgentRefused as error:
            if error.code is Code.NOT_FOUND:
                raise NotFound("kill", self.life.name, "process has already ended") from error
            raise

    async def resize(self, *, rows: int, columns: int) -> None:
        """A process without a terminal, or that has ended, has nothing to resize: success, as runc's shim has it."""
        if not self.stdio.terminal or self.life.ended:
            return
        await self._agent.resize(self.container_id, self.exec_id, rows=rows, columns=columns)


def is_gone(error: ShimError) -> bool:
    """Whether an agent's failure means that nobody is there to carry a signal out."""
    return isinstance(error, Unavailable | DeadlineExceeded)
