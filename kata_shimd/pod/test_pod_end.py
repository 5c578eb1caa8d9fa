"""How a pod ends: with its sandbox, when nothing is created, and when containerd has given a container up."""

import asyncio

import pytest

from kata_shimd.errors import (
    HostFailed,
    InvalidArgument,
)
from kata_shimd.pod import events
from kata_shimd.pod.process import Budgets
from kata_shimd.pod.values import CreateSpec, Stdio


async def test_init_exit_comes_after_every_execs(world):
    async with world() as w:
        await w.running()
        await w.exec()
        await w.pod.start("c1", "e1")
        w.guest.process("c1").end(0)
        await w.pod.container("c1").init.wait()
        exits = [(event.process_id, event.exit.status) for event in w.events.all if isinstance(event, events.Exited)]
        assert exits == [("e1", 137), ("c1", 0)]


async def test_pod_ends_with_the_container_that_made_it(world):
    async with world() as w:
        await w.running("s", "sandbox")
        await w.running("c", "container")
        w.guest.process("c").end(0)
        await w.pod.container("c").init.wait()
        await w.pod.delete("c")
        assert not w.pod.shutdown()
        assert w.pod.vm_exit is None
        w.guest.process("s").end(0)
        await w.starter.machine.wait()


async def test_a_sandbox_that_ends_takes_its_containers_with_it_and_each_end_is_told(world):
    async with world() as w:
        await w.running("s", "sandbox")
        await w.running("c", "container")
        w.guest.process("s").end(0)
        assert (await w.pod.container("c").init.wait()).status == 255
        exits = [(event.container_id, event.exit.status) for event in w.events.all if isinstance(event, events.Exited)]
        assert exits == [("s", 0), ("c", 255)]
        for name in ("c", "s"):
            assert not w.pod.shutdown(), "what has ended is there until it is deleted"
            await w.pod.delete(name)
        assert w.pod.shutdown()


async def test_a_stop_that_cannot_be_recorded_is_a_stop(world):
    async with world() as w:

        def full() -> None:
            raise HostFailed("write ledger", "pod", "No space left on device")

        w.on_stopping = full
        assert w.pod.shutdown()
        assert w.pod.stopping.is_set()
        assert "stop-not-recorded" in w.notes


async def test_shutdown_is_a_hint_while_containers_are_left(world):
    async with world() as w:
        await w.create()
        assert not w.pod.shutdown()
        assert not w.pod.stopping.is_set()


async def test_nobody_creates_anything_and_the_pod_ends_itself(world):
    async with world(Budgets(create_wait=0.01)) as w:
        await asyncio.wait_for(w.pod.stopping.wait(), 5)
        assert "expired" in w.notes


async def test_abandoned_container_is_ended_and_removed(world):
    async with world() as w:
        await w.running()
        await w.pod.abandon("c1")
        assert w.pod.containers == {}
        assert w.pod.stopping.is_set()


async def test_abandoned_before_its_create_the_pod_waits_only_a_moment(world):
    async with world(Budgets(abandoned_wait=0.01)) as w:
        await w.pod.abandon("c1")
        assert not w.pod.stopping.is_set()
        await asyncio.wait_for(w.pod.stopping.wait(), 5)


async def test_a_create_that_comes_after_all_is_none_the_worse(world):
    """containerd's `delete` of an earlier pod of this name may come late."""
    async with world(Budgets(abandoned_wait=0.05)) as w:
        await w.pod.abandon("c1")
        await w.running()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(w.pod.stopping.wait(), 0.2)


async def test_abandoned_after_its_create_failed_the_pod_ends(world):
    async with world() as w:
        with pytest.raises(InvalidArgument):
            await w.pod.create(CreateSpec("c1", w.tmp / "no-bundle", (), Stdio()))
        await w.pod.abandon("c1")
        assert w.pod.stopping.is_set()


async def test_a_container_that_never_was_does_not_end_others(world):
    async with world() as w:
        await w.running()
        await w.pod.abandon("c2")
        assert not w.pod.stopping.is_set()
