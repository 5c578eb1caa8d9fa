"""A pod whose guest lies, refuses, floods or never ends: Kill works, Delete ends, nothing is unbounded."""

import asyncio
import time

import pytest

from kata_shimd.errors import AgentRefused, Code, DeadlineExceeded, NotFound
from kata_shimd.pod import testing
from kata_shimd.pod.lifecycle import State
from kata_shimd.pod.values import Stdio


@pytest.mark.parametrize("code", [Code.INTERNAL, Code.DATA_LOSS, Code.UNAVAILABLE])
async def test_sigkill_that_the_agent_refuses_ends_the_vm(world, code):
    async with world() as w:
        await w.running()
        w.guest.refuse["signal_process"] = code
        await w.pod.kill("c1", "", 9, everyone=True)
        assert (await w.pod.container("c1").init.wait()).status == 255
        assert "kill-escalated" in w.notes


async def test_an_agent_that_denies_a_process_is_not_believed_for_long(world):
    """NotFound is passed on at once, for mostly it is true; when no exit follows, the VM goes."""
    async with world() as w:
        await w.running()
        w.guest.refuse["signal_process"] = Code.NOT_FOUND
        with pytest.raises(NotFound):
            await w.pod.kill("c1", "", 9, everyone=True)
        assert (await w.pod.container("c1").init.wait()).status == 255


async def test_a_refusal_for_an_exec_does_not_cost_the_vm(world):
    async with world() as w:
        await w.running()
        await w.exec()
        await w.pod.start("c1", "e1")
        w.guest.refuse["signal_process"] = Code.INTERNAL
        with pytest.raises(AgentRefused):
            await w.pod.kill("c1", "e1", 9, everyone=False)
        assert w.state() is State.RUNNING
        assert "kill-escalated" not in w.notes


async def test_kill_ends_though_qemu_does_not(world):
    async with world() as w:
        await w.running()
        w.guest.silent.add("signal_process")
        w.starter.machine.kill = lambda: None
        with pytest.raises(DeadlineExceeded, match="QEMU has not ended"):
            await w.pod.kill("c1", "", 9, everyone=True)
        w.starter.machine.end("at last")


async def test_endless_output_after_the_exit_is_cut_and_delete_ends(world):
    """A reader that takes everything must not keep Delete waiting for a guest that never stops."""
    async with world() as w:
        said = [bytes(2 << 20)] * 2  # more than waits for a reader that takes nothing, so the exit is asked for

        async def endless(*_args):
            await asyncio.sleep(0.001)
            return said.pop() if said else b"more"

        w.guest.read_stdout = endless
        await w.create(stdio=Stdio(stdout="out"))
        w.streams.sinks["out"].gate.clear()
        await w.pod.start("c1", "")
        w.guest.process("c1").errors.put_nowait(b"")
        w.guest.process("c1").status.set_result(0)
        await testing.until(lambda: w.pod.container("c1").init._outputs[0]._draining)
        w.streams.sinks["out"].gate.set()
        async with asyncio.timeout(3):
            assert (await w.pod.container("c1").init.wait()).status == 0
            await w.pod.delete("c1")


@pytest.mark.parametrize("says", [-(2**64), -1, 1, 10**9])
async def test_a_process_does_not_end_before_it_begins_whatever_the_guest_says(world, says):
    async with world() as w:
        await w.create()
        created = time.time_ns()
        await w.pod.start("c1", "")
        assert (await ended(w, says)).at_ns >= created


@pytest.mark.parametrize("later", [10**9, 2**64])
async def test_nor_does_it_end_in_the_future(world, later):
    async with world() as w:
        await w.running()
        assert (await ended(w, time.time_ns() + later)).at_ns <= time.time_ns()


async def ended(world, says, exec_id=""):
    """The guest says of an end when that was."""
    process = world.guest.process("c1", exec_id)
    process.says_it_ended = says
    process.end(7)
    return await world.pod.container("c1").process(exec_id).wait()


async def test_a_flood_of_memory_events_is_slowed_down(world):
    async with world() as w:
        await w.running()
        asked = 0

        async def at_once():
            nonlocal asked
            asked += 1
            await asyncio.sleep(0)
            return "c1"

        w.guest.oom_event = at_once
        w.guest.oom.put_nowait("c1")  # the call that is under way
        await asyncio.sleep(0.3)
        assert asked <= 64
        assert w.events.names().count("OutOfMemory") <= 65
