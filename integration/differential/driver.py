"""Replays a sequence on a shim and records what it answers and tells.

Waits only for answers, events and output, each within the shim's time; what does not come is part of the record. What must never
happen: a container of one sequence left for the next.
"""

import asyncio
import itertools
import os
import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

from integration.differential.bundle import Stdio, exec_request, request
from integration.differential.compare import apart
from integration.differential.judge import Parting, possible
from integration.differential.record import LOST, NO_ANSWER, OK, Identities, Outcome, Reader, Record, StepRecord
from integration.differential.shim import REPLIES, Kind, Shim
from integration.differential.steps import Call, Rpc, Sequence, Step
from kata_shimd import wire
from kata_shimd.api import task
from kata_shimd.errors import DeadlineExceeded, ShimError, Unavailable
from kata_shimd.ttrpc import RpcError

SIGKILL: Final = 9
#: What a program is sent on its stdin before that is closed.
LAST_INPUT: Final = b"in\n"

#: By step: the order in which its calls are issued one by one instead of at once.
Orders = Mapping[int, tuple[int, ...]]


class Output:
    """Collects what a process writes, from its FIFO."""

    def __init__(self, stdio: Stdio, changed: asyncio.Event) -> None:
        self.data, self.ended = b"", False
        self._stdio, self._changed = stdio, changed
        asyncio.get_running_loop().add_reader(stdio.reader(), self._read)

    def _read(self) -> None:
        data = os.read(self._stdio.reader(), 65536)
        self.data += data
        if not data:
            self.ended = True
            asyncio.get_running_loop().remove_reader(self._stdio.reader())
        self._changed.set()

    def end_input(self) -> None:
        self._stdio.end_input(LAST_INPUT)

    def close(self) -> None:
        if not self.ended:
            asyncio.get_running_loop().remove_reader(self._stdio.reader())
        self._stdio.close()


class Replay:
    """One sequence on one shim. ``number`` makes its ids unlike those of other sequences on the same pod."""

    def __init__(self, shim: Shim, sequence: Sequence, number: int, orders: Orders) -> None:
        self._shim, self._sequence, self._orders = shim, sequence, orders
        self._prefix = f"{shim.tag}-{number}-"
        self._identities = Identities()
        names = {str(shim.host.root): "", self._prefix: "", shim.tag: ""}
        self._reader = Reader(self._identities, names)
        self._begun: dict[str, list[str]] = {}
        self._outputs: dict[str, list[Output]] = {}
        self._output_changed = asyncio.Event()
        self._record = Record()
        #: What this shim makes of the lives that began, by what parted; of it no more is waited for.
        self._parted: dict[str, int] = {}
        self._marks = itertools.count()

    async def run(self) -> Record:
        try:
            async with asyncio.TaskGroup() as held:
                for step in self._sequence.steps:
                    self._record.steps.append(await self._step(step, held))
                await self._end_all()
                async with self._in_time():
                    await self._until(lambda: all(wait.code != NO_ANSWER for wait in self._record.waits.values()))
                raise _Done
        except* _Done:
            pass
        await self._collect()
        return self._record

    # --- a step --------------------------------------------------------------------------------------------------

    async def _step(self, step: Step, held: asyncio.TaskGroup) -> StepRecord:
        for call in step.calls:
            if call.rpc is Rpc.CREATE:
                await self._begin(call)
        number = len(self._record.steps)
        begun = [one for one in possible(self._sequence, self._record, number) if not self._apart(one.call.target)]
        await self._mark(begun)
        ups = {target: self._ups(target) for target in self._outputs}
        answers = await self._issue(step, number, held)
        late = [wanted for wanted in self._wanted(step, begun, answers) if not await self._comes(wanted, ups)]
        return StepRecord(answers, {} if step.open else await self._states(step), tuple(late))

    async def _mark(self, begun: list[Parting]) -> None:
        """Note how much of the containers' events is from before, once all of it has come."""
        if begun:
            with suppress(ShimError, TimeoutError):
                await self._told()
        for one in begun:
            for container in self._begun:
                count = len(self._shim.recorder.of(self._real(container)))
                self._record.told[one.target, container] = count

    def _wanted(self, step: Step, begun: list[Parting], answers: list[Outcome]) -> list[str]:
        """What is to come of a step. ``until`` speaks of runc's shim, and of ours as long as nothing has parted."""
        ended = []
        for one in begun:
            turn = one.life.runc if self._shim.kind.is_runc else one.life.ours
            if any(
                call == one.call and answer.code == turn.code for call, answer in zip(step.calls, answers, strict=True)
            ):
                self._parted.setdefault(one.target, one.step)
                ended += [f"exit {one.call.target}"] if turn.status(one.call) is not None else []
        if self._shim.kind.is_runc:
            return list(step.until)
        return [*(wanted for wanted in step.until if not self._apart(wanted.partition(" ")[2])), *ended]

    def _apart(self, target: str) -> bool:
        return apart(self._parted, target, len(self._record.steps))

    async def _issue(self, step: Step, number: int, held: asyncio.TaskGroup) -> list[Outcome]:
        answers = [Outcome(NO_ANSWER)] * len(step.calls)
        order = self._orders.get(number)
        async with asyncio.TaskGroup() as group:
            for index in order or range(len(step.calls)):
                call = step.calls[index]
                if call.held:
                    self._record.waits[number, index] = answers[index]
                    held.create_task(self._hold(call, (number, index)), name=f"held {call}")
                elif order is None:
                    group.create_task(self._answer(call, answers, index), name=str(call))
                else:
                    await self._answer(call, answers, index)
        return answers

    async def _hold(self, call: Call, key: tuple[int, int]) -> None:
        self._record.waits[key] = await self._call(call)
        self._output_changed.set()

    async def _answer(self, call: Call, answers: list[Outcome], index: int) -> None:
        """A Wait that is not held is of a process that has ended, unless it lives on with one of the two."""
        settle = self._shim.kind.settle
        within = None if call.rpc is not Rpc.WAIT else settle / 4 if self._apart(call.target) else settle
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                answers[index] = await self._call(call)

    async def _states(self, step: Step) -> dict[str, Outcome]:
        """State of every process that the step's containers may have by now."""
        states = {}
        for container in step.containers:
            for exec_id in ["", *self._begun.get(container, [])] if container in self._begun else []:
                call = Call(Rpc.STATE, container, exec_id)
                states[call.target] = await self._call(call)
        return states

    async def _comes(self, wanted: str, ups: Mapping[str, int]) -> bool:
        """Whether it comes in time; ``ups``: how many of each name were up before the step, for a name may be used again."""
        what, _, target = wanted.partition(" ")
        try:
            async with asyncio.timeout(self._shim.kind.settle):
                if what == "exit":
                    await self._shim.recorder.until(lambda: self._has_exited(target))
                else:
                    await self._until(lambda: self._ups(target) > ups.get(target, 0))
        except TimeoutError:
            return False
        return True

    def _ups(self, target: str) -> int:
        return sum(b"up" in output.data for output in self._outputs.get(target, ()))

    def _has_exited(self, target: str) -> bool:
        """As often as it was started."""
        container, _, exec_id = target.partition("/")
        wanted = exec_id or self._real(container)
        events = self._shim.recorder.of(self._real(container))
        exits = sum(event.topic == "/tasks/exit" and event.fields["id"] == wanted for event in events)
        starts = sum(event.topic == "/tasks/exec-started" and event.fields["exec_id"] == exec_id for event in events)
        return exits >= max(1, starts)

    async def _until(self, wanted: Callable[[], bool]) -> None:
        while not wanted():
            self._output_changed.clear()
            await self._output_changed.wait()

    # --- a call --------------------------------------------------------------------------------------------------

    async def _call(self, call: Call) -> Outcome:
        if call.rpc is Rpc.END:
            return Outcome(await self._end(call.container))
        if call.rpc is Rpc.CLOSE_IO:
            for output in self._outputs.get(call.target, ()):
                output.end_input()
        container_id = self._real(call.container)
        return await self._ask(call.rpc, self._request(call), container_id, call.target)

    async def _ask(self, rpc: Rpc, message: Any, container_id: str, target: str) -> Outcome:
        try:
            data = await self._shim.call(rpc, message, container_id)
        except RpcError as error:
            return Outcome(error.code.name, text=error.message)
        except DeadlineExceeded:
            return Outcome(NO_ANSWER)
        except (Unavailable, OSError) as error:
            return Outcome(LOST, text=str(error))
        except ShimError as error:
            return Outcome(error.code.name, text=str(error))
        return Outcome(OK, self._reader.read(wire.decode(REPLIES[rpc], data), target))

    def _request(self, call: Call) -> Any:
        container_id = self._real(call.container)
        exec_id = self._exec_id(call)
        if call.rpc is Rpc.CREATE:
            paths = self._open_streams(call).paths
            bundle = self._shim.bundle(self._bundle_id(call))
            return bundle.create(call, container_id, paths)
        if call.rpc is Rpc.EXEC:
            execs = self._begun.get(call.container)
            if execs is not None and call.process not in execs and not call.process.startswith("="):
                execs.append(call.process)
            return exec_request(call, container_id, exec_id, self._open_streams(call).paths)
        return request(call, container_id, exec_id)

    def _open_streams(self, call: Call) -> Stdio:
        """New FIFOs for every attempt, as a client makes them."""
        attempts = self._outputs.setdefault(call.target, [])
        place = f"{zlib.crc32(call.target.encode()):08x}-{len(attempts)}"
        stdio = self._shim.stdio(call, self._prefix + "io", place)
        attempts.append(Output(stdio, self._output_changed))
        return stdio

    def _real(self, container: str) -> str:
        return container[1:] if container.startswith("=") else self._prefix + container

    def _exec_id(self, call: Call) -> str:
        if call.process == "@":
            return self._real(call.container)
        return call.process.removeprefix("=")

    async def _begin(self, call: Call) -> None:
        """What containerd does before a Create: a new bundle and, for an id that is new, ``start`` and a connection."""
        self._shim.write_bundle(call, self._bundle_id(call))
        if call.container not in self._begun and not call.container.startswith("="):
            await self._shim.begin(self._real(call.container))
            self._begun[call.container] = []

    def _bundle_id(self, call: Call) -> str:
        """The name of its bundle directory; a stranger's id may be none."""
        return f"{self._prefix}stranger" if call.container.startswith("=") else self._real(call.container)

    # --- the end -------------------------------------------------------------------------------------------------

    async def _end_all(self) -> None:
        for container in self._begun:
            self._record.ends[container] = await self._end(container)

    async def _end(self, container: str) -> str:
        """Resume, kill, wait and delete, whichever apply. ``gone``, or what stood in the way."""
        container_id = self._real(container)
        state = await self._plain(Rpc.STATE, task.StateRequest(id=container_id), container_id)
        if state.reply is not None and state.reply["status"] in ("PAUSED", "PAUSING"):
            await self._plain(Rpc.RESUME, task.ResumeRequest(id=container_id), container_id)
        if state.reply is not None and state.reply["status"] != "STOPPED":
            killed = await self._plain(
                Rpc.KILL, task.KillRequest(id=container_id, signal=SIGKILL, all=True), container_id
            )
            if killed.code == OK and not await self._comes(f"exit {container}", {}):
                return "not killed"
        deleted = await self._plain(Rpc.DELETE, task.DeleteRequest(id=container_id), container_id)
        return "gone" if deleted.code in (OK, "NOT_FOUND", LOST) else f"not deleted: {deleted.code} {deleted.text}"

    async def _plain(self, rpc: Rpc, message: Any, container_id: str) -> Outcome:
        return await self._ask(rpc, message, container_id, container_id.removeprefix(self._prefix))

    @asynccontextmanager
    async def _in_time(self) -> AsyncIterator[None]:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._shim.kind.settle):
                yield

    async def _collect(self) -> None:
        """The asynchronous part of the record, once nothing of it is under way any more."""
        try:
            await self._settle()
        except (ShimError, TimeoutError):
            self._record.lost = True
        finally:
            for container in self._begun:
                await self._shim.finish(self._real(container))
        if self._sequence.alone:
            self._record.shim_ended = await self._shim.ended()
        for container in self._begun:
            self._record.events[container] = [
                (event.topic, self._reader.read_fields(event.fields, self._target(container, event.fields)))
                for event in self._shim.recorder.of(self._real(container))
            ]
        for target, outputs in self._outputs.items():
            for attempt, output in enumerate(outputs):
                self._record.outputs[f"{target} #{attempt}"] = (output.data.decode(errors="replace"), output.ended)
                output.close()
        self._record.identities = self._identities.counts()

    async def _settle(self) -> None:
        outputs = [output for outputs in self._outputs.values() for output in outputs]
        async with self._in_time():
            await self._until(lambda: all(output.ended or not output.data for output in outputs))
        await self._told()

    async def _told(self) -> None:
        """All that has been published is recorded, as far as a pod is there to tell."""
        if not self._sequence.alone:
            await self._shim.events_settled(f"mark-{self._prefix}{next(self._marks)}")

    def _target(self, container: str, event: dict[str, Any]) -> str:
        exec_id = event.get("exec_id") or event.get("id", "")
        return container if exec_id in ("", self._real(container)) else f"{container}/{exec_id}"


class _Done(Exception):
    """Leaves the group of held Waits, and with it those that never answer."""


async def replay(shim: Shim, sequence: Sequence, number: int, orders: Orders | None = None) -> Record:
    """Replay on a shim whose pod is up; a sequence for a pod of its own has the shim to itself."""
    shim.service = shim.kind.service(sequence.name)
    return await Replay(shim, sequence, number, orders or {}).run()


async def replay_alone(kind: Kind, sequence: Sequence, orders: Orders | None = None) -> Record:
    """Replay on a shim of its own."""
    async with Shim(kind, pod=False) as shim:
        return await replay(shim, sequence, 0, orders)
