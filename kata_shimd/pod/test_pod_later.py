"""What a daemon makes of what happened before it, or while none was there."""

import time
from contextlib import asynccontextmanager

import pytest

from kata_shimd.errors import Code, NotFound
from kata_shimd.pod import memory


@pytest.fixture
def later(world):
    """Another daemon's world, with what is on record of the container that ``w`` has, and the same guest."""

    @asynccontextmanager
    async def make(past, guest):
        async with world(begin=False) as after:
            after.starter.guest = guest
            after.pod.restore({"c1": past}, guest)
            after.pod.begin()
            yield after

    return make


async def end(world, at, exec_id=""):
    process = world.guest.process("c1", exec_id)
    process.says_it_ended = at
    process.end(7)
    return await world.pod.container("c1").process(exec_id).wait()


async def test_an_end_was_when_the_guest_says(world, later):
    async with world() as w:
        await w.running()
        past, guest = memory.of_container(w.pod.container("c1")), w.guest
    moment = time.time_ns()
    async with later(past, guest) as w:
        assert (await end(w, moment)).at_ns == moment


async def test_so_was_an_execs(world):
    async with world() as w:
        await w.running()
        await w.exec()
        await w.pod.start("c1", "e1")
        moment = time.time_ns()
        assert (await end(w, moment, "e1")).at_ns == moment


async def test_an_end_of_which_the_guest_does_not_say_when_it_was_is_when_it_is_heard_of(world):
    async with world() as w:
        await w.running()
        before = time.time_ns()
        assert before <= (await end(w, 0)).at_ns <= time.time_ns()


async def test_what_began_in_an_earlier_daemons_life_did_not_end_before_that(world, later):
    async with world() as w:
        await w.create()
        created = time.time_ns()
        await w.pod.start("c1", "")
        past, guest = memory.of_container(w.pod.container("c1")), w.guest
    until = time.time_ns()
    async with later(past, guest) as w:
        assert created <= (await end(w, 1)).at_ns <= until


async def test_a_record_without_a_beginning(world, later):
    """A version's that had none: what the guest says may be anything, so it ended when it is heard of."""
    async with world() as w:
        await w.running()
        past, guest = memory.of_container(w.pod.container("c1")), w.guest
    del past["init"]["began"]
    moment = time.time_ns()
    async with later(past, guest) as w:
        assert (await end(w, 1)).at_ns >= moment


async def test_what_ended_before_a_start_that_is_asked_for_again_ended_then(world, later):
    """The daemon before this one died over it, and the container ended meanwhile."""
    async with world() as w:
        await w.create()
        past, guest = memory.of_container(w.pod.container("c1")), w.guest
    moment = time.time_ns()
    async with later(past, guest) as w:
        await w.pod.booted()
        guest.again = True
        await w.pod.start("c1", "")
        assert (await end(w, moment)).at_ns == moment


@pytest.mark.parametrize("exec_id", ["", "e1"])
async def test_a_kill_that_a_daemon_died_over_may_have_been_the_end(world, exec_id):
    async with world() as w:
        await w.running()
        await w.exec()
        await w.pod.start("c1", "e1")
        await end(w, 0, exec_id)
        with pytest.raises(NotFound, match="process has already ended"):
            await w.pod.kill("c1", exec_id, 9, everyone=False)
        asked = list(w.guest.calls)
        w.guest.again = True
        await w.pod.kill("c1", exec_id, 9, everyone=False)
        assert w.guest.calls == asked


async def test_so_may_one_whose_end_has_yet_to_be_heard_of(world):
    async with world() as w:
        await w.running()
        await w.exec()
        await w.pod.start("c1", "e1")
        w.guest.refuse["signal_process"] = Code.NOT_FOUND
        with pytest.raises(NotFound):
            await w.pod.kill("c1", "e1", 9, everyone=False)
        w.guest.again = True
        await w.pod.kill("c1", "e1", 9, everyone=False)
        with pytest.raises(NotFound, match="no such exec"):
            await w.pod.kill("c1", "e2", 9, everyone=False)
