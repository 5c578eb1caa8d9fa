"""The rules of a pod's life, against a guest in memory."""

import asyncio

import pytest

from kata_shimd.errors import (
    AgentRefused,
    AlreadyExists,
    Code,
    FailedPrecondition,
    HostFailed,
    InvalidArgument,
    NotFound,
    ShimError,
    VmFailed,
)
from kata_shimd.pod import events, memory, testing
from kata_shimd.pod.conftest import BUDGETS
from kata_shimd.pod.lifecycle import State
from kata_shimd.pod.values import Exit, Stdio


async def test_life_of_one_container_tells_its_events_in_order(world):
    async with world() as w:
        assert await w.create() == testing.Machine.pid
        assert await w.pod.start("c1", "") == testing.Machine.pid
        w.guest.process("c1").end(7)
        end = await w.pod.container("c1").init.wait()
        assert end.status == 7
        assert await w.pod.delete("c1") == (testing.Machine.pid, end)
        assert w.events.names() == ["Created", "Started", "Exited", "Deleted"]
        assert w.pod.shutdown()


async def test_wait_may_come_before_start(world):
    async with world() as w, asyncio.TaskGroup() as group:
        await w.create()
        waiting = group.create_task(w.pod.container("c1").init.wait())
        await w.pod.start("c1", "")
        w.guest.process("c1").end(0)
        assert (await waiting).status == 0


async def test_output_reaches_the_reader_before_the_exit_is_told(world):
    async with world() as w:
        await w.running(stdio=Stdio(stdout="out", stderr="err"))
        process = w.guest.process("c1")
        process.output.put_nowait(b"last ")
        process.output.put_nowait(b"words")
        process.errors.put_nowait(b"oops")
        process.end(0)
        await w.pod.container("c1").init.wait()
        await w.pod.container("c1").finish()
        assert w.streams.sinks["out"].data == b"last words"
        assert w.streams.sinks["err"].data == b"oops"
        assert w.streams.sinks["out"].closed


async def test_a_reader_that_takes_nothing_does_not_hold_up_the_exit_nor_delete(world):
    async with world() as w:
        w.streams.sinks["out"] = testing.MemorySink()
        w.streams.sinks["out"].gate.clear()
        await w.running(stdio=Stdio(stdout="out"))
        w.guest.process("c1").output.put_nowait(b"x")
        w.guest.process("c1").end(0)
        assert (await w.pod.container("c1").init.wait()).status == 0
        await w.pod.delete("c1")
        assert w.streams.sinks["out"].closed


async def test_stdin_is_copied_whole_and_closed_after_close_io(world):
    async with world() as w:
        await w.running(stdio=Stdio(stdin="in"))
        w.streams.sources["in"].data.put_nowait(b"0123456789" * 3)
        w.pod.container("c1").init.close_stdin()
        process = w.guest.process("c1")
        await testing.until(lambda: process.stdin_closed)
        assert process.stdin == b"0123456789" * 3


async def test_close_io_that_comes_before_an_execs_streams_are_open_is_not_lost(world):
    """A client whose input fits into the FIFO says it at once. Start may only be under way then, or be begun again by a later
    daemon."""
    async with world() as w:
        await w.running()
        await w.exec(stdio=Stdio(stdin="in"))
        w.pod.container("c1").process("e1").close_stdin()
        await w.pod.start("c1", "e1")
        await testing.until(lambda: w.guest.process("c1", "e1").stdin_closed)


async def test_no_stdin_closes_the_guests_at_once(world):
    async with world() as w:
        await w.running()
        await testing.until(lambda: w.guest.process("c1").stdin_closed)
        w.pod.container("c1").init.close_stdin()  # and CloseIO does nothing


async def test_vm_death_ends_every_process_with_255_init_last(world):
    async with world() as w:
        await w.running()
        await w.exec()
        await w.pod.start("c1", "e1")
        w.starter.machine.end("killed by the host")
        assert (await w.pod.container("c1").init.wait()).status == 255
        exits = [event.process_id for event in w.events.all if isinstance(event, events.Exited)]
        assert exits == ["e1", "c1"]
        assert "vm-ended" in w.notes
        await w.pod.delete("c1")


async def test_an_agent_that_is_lost_ends_the_vm(world):
    async with world() as w:
        await w.running()
        w.guest.die()
        assert (await w.pod.container("c1").init.wait()).status == 255
        assert "agent-lost" in w.notes


async def test_an_agent_that_goes_with_its_vm_is_not_blamed(world):
    async with world() as w:
        await w.running()
        w.guest.die()
        await asyncio.sleep(0)
        w.starter.machine.end("killed by the host")
        assert (await w.pod.container("c1").init.wait()).status == 255
        assert "vm-ended" in w.notes
        assert "agent-lost" not in w.notes


async def test_a_channel_that_ends_is_told_even_if_the_pod_is_stopped_for_it(world):
    async with world() as w:
        await w.running()
        w.guest.die()
        await testing.until(lambda: "channel-lost" in w.notes)
        await w.pod.stop_vm()


async def test_boot_failure_is_remembered_and_answered_by_create(world):
    async with world(begin=False) as w:
        w.starter.error = VmFailed("boot VM", "q35", "no kernel", hint="build a guest")
        w.pod.begin()
        with pytest.raises(VmFailed, match="no kernel"):
            await w.create()
        assert w.files.shared == {}
        assert w.pod.shutdown()


@pytest.mark.parametrize("rpc", ["create_container"])
async def test_failed_create_leaves_nothing_and_can_be_retried(world, rpc):
    async with world() as w:
        w.guest.refuse[rpc] = Code.INTERNAL
        with pytest.raises(AgentRefused):
            await w.create()
        assert w.files.shared == {}
        with pytest.raises(NotFound):
            w.pod.container("c1")
        del w.guest.refuse[rpc]
        await w.create()
        assert w.state() is State.CREATED


async def test_failed_share_is_undone(world):
    async with world() as w:
        w.files.fail["share_rootfs"] = HostFailed("mount", "overlay", "no such device")
        with pytest.raises(HostFailed):
            await w.create()
        assert w.files.shared == {}


async def test_create_twice(world):
    async with world() as w:
        await w.create()
        with pytest.raises(AlreadyExists):
            await w.create()


async def test_second_sandbox_is_refused_and_a_further_container_is_not(world):
    async with world() as w:
        await w.create("s", "sandbox")
        with pytest.raises(InvalidArgument):
            await w.create("s2", "sandbox")
        await w.create("c", "container")


@pytest.mark.parametrize("verb", ["start", "delete", "pause"])
async def test_verbs_not_in_the_table_are_failed_precondition(world, verb):
    async with world() as w:
        await w.running()
        container = w.pod.container("c1")
        if verb == "pause":
            await container.pause()
        actions = {
            "start": lambda: w.pod.start("c1", ""),
            "delete": lambda: w.pod.delete("c1"),
            "pause": container.pause,
        }
        with pytest.raises(FailedPrecondition):
            await actions[verb]()


async def test_kill_goes_to_the_guest_and_after_the_end_is_not_found(world):
    async with world() as w:
        await w.running()
        await w.pod.kill("c1", "", 15, everyone=False)
        assert (await w.pod.container("c1").init.wait()).status == 143
        with pytest.raises(NotFound):
            await w.pod.kill("c1", "", 9, everyone=True)


async def test_kill_of_everyone_reaches_every_exec_with_any_signal(world):
    """The agent's own rule sends all but SIGKILL to init alone (`kata.md` §2.4); runc's shim sends it to all."""
    async with world() as w:
        await w.running()
        for exec_id in ("e1", "e2", "e3"):
            await w.exec(exec_id)
        await w.pod.start("c1", "e1")
        await w.pod.start("c1", "e2")
        w.guest.process("c1", "e2").end(0)
        await w.pod.kill("c1", "", 10, everyone=True)
        sent = [call[1:] for call in w.guest.calls if call[0] == "signal_process"]
        assert ("c1", "", "10") in sent and ("c1", "e1", "10") in sent
        assert "e3" not in {exec_id for _, exec_id, _ in sent}, "it has not been started"


async def test_everyone_of_an_exec_is_the_exec(world):
    async with world() as w:
        await w.running()
        await w.exec()
        await w.pod.start("c1", "e1")
        await w.pod.kill("c1", "e1", 9, everyone=True)
        assert (await w.pod.container("c1").process("e1").wait()).status == 137
        assert not w.guest.process("c1").status.done()


async def test_kill_of_a_created_container_ends_it(world):
    async with world() as w:
        await w.create()
        await w.pod.kill("c1", "", 9, everyone=True)
        assert (await w.pod.container("c1").init.wait()).status == 137
        await w.pod.delete("c1")


async def test_delete_before_start_answers_who_waits_and_spares_the_vm(world):
    async with world() as w, asyncio.TaskGroup() as group:
        await w.create()
        waiting = group.create_task(w.pod.container("c1").init.wait())
        w.guest.deaf = True  # no exit follows the kill
        await w.pod.kill("c1", "", 9, everyone=True)
        _, end = await w.pod.delete("c1")
        assert (await waiting).status == end.status == 137
        assert w.events.names() == ["Created", "Exited", "Deleted"]
        await asyncio.sleep(2 * BUDGETS.kill)
        assert "kill-escalated" not in w.notes


async def test_update_of_a_stopped_container_is_failed_precondition(world):
    async with world() as w:
        await w.running()
        await w.pod.kill("c1", "", 9, everyone=True)
        await w.pod.container("c1").init.wait()
        with pytest.raises(FailedPrecondition):
            await w.pod.update("c1", {})


async def test_sigkill_that_the_agent_does_not_carry_out_ends_the_vm(world):
    async with world() as w:
        await w.running()
        w.guest.silent.add("signal_process")
        await w.pod.kill("c1", "", 9, everyone=True)
        assert w.pod.container("c1").init.exit.status == 255
        assert "kill-escalated" in w.notes


async def test_sigkill_is_seen_to_by_a_later_daemon(world):
    """The one that sent it was killed before the guest had carried it out; the guest never does."""
    async with world() as w:
        await w.running()
        w.guest.deaf = True
        await w.pod.kill("c1", "", 9, everyone=True)
        past, guest = memory.of_container(w.pod.container("c1")), w.guest
    assert past["init"]["exit"] is None
    async with world(begin=False) as w:
        w.starter.guest = guest
        w.pod.restore({"c1": past}, guest)
        w.pod.begin()
        assert (await w.pod.container("c1").init.wait()).status == 255
        assert "kill-escalated" in w.notes


async def test_sigkill_that_the_agent_only_says_it_sent_ends_the_vm(world):
    async with world() as w:
        await w.running()
        w.guest.deaf = True
        await w.pod.kill("c1", "", 9, everyone=True)
        assert (await w.pod.container("c1").init.wait()).status == 255
        assert "kill-escalated" in w.notes


async def test_kill_works_while_start_hangs(world):
    async with world() as w, asyncio.TaskGroup() as group:
        await w.create()
        w.guest.silent.add("start_container")
        stuck = group.create_task(_swallow(w.pod.start("c1", "")))
        await asyncio.sleep(0)
        await w.pod.kill("c1", "", 9, everyone=True)
        assert (await w.pod.container("c1").init.wait()).status == 137
        w.guest.die()
        await stuck


async def _swallow(work):
    with pytest.raises(ShimError):
        await work


async def test_exec_has_its_own_life_and_exit(world):
    async with world() as w:
        await w.running()
        await w.exec()
        with pytest.raises(AlreadyExists):
            await w.exec()
        with pytest.raises(FailedPrecondition):
            await w.pod.kill("c1", "e1", 15, everyone=False)
        await w.pod.start("c1", "e1")
        w.guest.process("c1", "e1").end(3)
        assert (await w.pod.container("c1").process("e1").wait()).status == 3
        _, end = await w.pod.container("c1").delete_exec("e1")
        assert end.status == 3
        with pytest.raises(NotFound):
            w.pod.container("c1").process("e1")
        assert w.state() is State.RUNNING


async def test_exec_that_cannot_be_run_says_why_and_can_be_deleted(world):
    async with world() as w:
        await w.running()
        w.guest.refuse["exec_process"] = Code.NOT_FOUND
        await w.exec()
        with pytest.raises(AgentRefused):
            await w.pod.start("c1", "e1")
        assert await w.pod.container("c1").delete_exec("e1") == (0, Exit(0, 0))


async def test_a_pause_holds_live_execs_and_no_others(world):
    async with world() as w:
        await w.running()
        container = w.pod.container("c1")
        for exec_id in ("e1", "e2"):
            await w.exec(exec_id)
            await w.pod.start("c1", exec_id)
        w.guest.process("c1", "e2").end(0)
        await container.process("e2").wait()
        await container.pause()
        states = [container.snapshot(exec_id).state for exec_id in ("", "e1", "e2")]
        assert states == [State.PAUSED, State.PAUSED, State.STOPPED]
        await container.resume()
        assert container.snapshot("e1").state is State.RUNNING


async def test_deleted_twice_at_once_is_not_found_for_the_second(world):
    async with world() as w, asyncio.TaskGroup() as group:
        await w.running()
        w.guest.process("c1").end(0)
        await w.pod.container("c1").init.wait()
        first = group.create_task(w.pod.delete("c1"))
        await asyncio.sleep(0)
        with pytest.raises(NotFound):
            await w.pod.delete("c1")
        await first


async def test_memory_event_is_told(world):
    async with world() as w:
        await w.running()
        w.guest.oom.put_nowait("c1")
        await testing.until(lambda: "OutOfMemory" in w.events.names())


async def test_stats_answers_for_a_stopped_container(world):
    async with world() as w:
        await w.running()
        w.guest.process("c1").end(137)
        await w.pod.container("c1").init.wait()
        assert await w.pod.stats("c1") == {"container": "c1"}


async def test_what_reads_the_output_may_end_before_it_is_undone(world):
    """A logger ends at the end of its input, so that is given first; to be undone is to be killed."""
    async with world() as w:
        await w.running(stdio=Stdio(stdout="out", stderr="err"))
        w.guest.process("c1").end(0)
        await w.pod.container("c1").init.wait()
        w.files.fail["undo"] = HostFailed("undo", "mount", "busy")
        with pytest.raises(HostFailed):
            await w.pod.delete("c1")
        assert w.streams.settled == [("c1", [True, True])]
        del w.files.fail["undo"]


async def test_failed_undo_keeps_the_container_for_another_delete(world):
    async with world() as w:
        await w.running()
        w.guest.process("c1").end(0)
        await w.pod.container("c1").init.wait()
        w.files.fail["undo"] = HostFailed("undo", "mount", "busy")
        with pytest.raises(HostFailed):
            await w.pod.delete("c1")
        del w.files.fail["undo"]
        await w.pod.delete("c1")


async def test_resize_without_terminal_is_a_silent_success(world):
    async with world() as w:
        await w.running()
        await w.pod.container("c1").init.resize(rows=1, columns=2)
        assert w.guest.process("c1").size is None
