"""A daemon in front of a hostile agent: every RPC but Wait ends, Kill works, memory and processor time are bounded.

The pod, the client, the streams and their FIFOs are the real ones. Deadlines are small, and everything counts from them.
"""

import asyncio
import inspect
import os
import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from integration.hostile.agent.guest import ATTACKS, Attack, babble, in_turn, never, payload, raw, refusal, success
from integration.hostile.agent.stage import BUDGETS, DEADLINES, ENDS, Cost, Stage, staged
from kata_shimd.agent.client import Deadlines
from kata_shimd.api import agent as pb
from kata_shimd.api import task
from kata_shimd.api.services import task_v2
from kata_shimd.errors import AgentRefused, DeadlineExceeded, ShimError, Unavailable
from kata_shimd.pod.process import Budgets
from kata_shimd.pod.testing import until
from kata_shimd.pod.values import Stdio

#: What this process, the hostile peer included, may grow by in any of these tests, in MiB: the largest message, as
#: frame, envelope, text and with the peer, for each of the four calls that are open at once.
MOST = 64.0

VERBS: dict[str, Callable[[Stage], object]] = {
    "State": lambda stage: stage.state(),
    "Exec": lambda stage: stage.exec(),
    "ResizePty": lambda stage: stage.service.resize_pty(
        task.ResizePtyRequest(id="c1", exec_id="e1", height=24, width=80)
    ),
    "CloseIO": lambda stage: stage.service.close_io(task.CloseIoRequest(id="c1", stdin=True)),
    "Stats": lambda stage: stage.pod.stats("c1"),
    "Update": lambda stage: stage.pod.update("c1", {}),
    "Pause": lambda stage: stage.pod.container("c1").pause(),
    "Resume": lambda stage: stage.pod.container("c1").resume(),
    "Kill": lambda stage: stage.kill(15),
}


#: Without a keeper, and with a channel that would outlive the daemon.
BOTH = pytest.mark.parametrize("kept", [False, True], ids=["", "kept"])

#: Until the container runs; a memory event is answered when it likes, which has tests of its own.
GOOD = {"CreateContainer": success, "StartContainer": success, "GetOOMEvent": never}


async def ended(act: Callable[[], object]) -> None:
    """It succeeds or fails with an error of ours, in time."""
    async with asyncio.timeout(ENDS):
        try:
            done = act()
            if inspect.isawaitable(done):
                await done
        except ShimError as error:
            assert len(str(error)) < 4096
            assert str(error).isprintable()


# --- every call answered by every attack -------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
async def test_every_verb_ends_and_kill_works(tmp_path: Path, attack: Attack, kept: bool) -> None:
    """The container runs, and from then on nothing is answered as it should be."""
    cost = Cost()
    async with staged(tmp_path, GOOD, attack.answer, kept=kept) as stage:
        await stage.running()
        for verb in VERBS.values():
            await ended(partial(verb, stage))
        await ended(stage.kill)
        assert await stage.exit() == stage.state().exit_status == attack.exit
        await stage.delete()
        assert stage.events.names()[-2:] == ["Exited", "Deleted"]
    assert cost.megabytes < MOST * (2 if kept else 1), "a journal has what was received once more"


def test_every_rpc_that_a_guest_can_hold_up_is_a_verb_here() -> None:
    """The others are the beginning and the end of a container, which every test has, and what never asks the guest."""
    asks_nobody = {"Pids", "Checkpoint", "Connect", "Shutdown"}
    assert {rpc.name for rpc in task_v2.SERVICE} == VERBS.keys() | asks_nobody | {"Create", "Start", "Wait", "Delete"}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
async def test_create_ends_and_a_failure_leaves_nothing(tmp_path: Path, attack: Attack) -> None:
    async with staged(tmp_path, {}, attack.answer) as stage:
        await ended(stage.create)
        if "c1" not in stage.pod.containers:
            assert stage.files.shared == {}
            assert stage.events.names() == []


#: So many random guests at once, each in front of a pod of its own.
CROWD: Final = 50


@pytest.mark.parametrize("first", range(0, 4 * CROWD, CROWD))
async def test_random_frames_instead_of_any_answer(tmp_path: Path, first: int) -> None:
    async with asyncio.TaskGroup() as group:
        for seed in range(first, first + CROWD):
            (tmp_path / f"{seed}").mkdir()
            group.create_task(_random_frames(tmp_path / f"{seed}", seed), name=f"seed {seed}")


async def _random_frames(where: Path, seed: int) -> None:
    """What a guest says by chance may be a success; State and Wait tell the same then, and everything ends."""
    async with staged(where, GOOD, babble(seed)) as stage:
        await stage.running()
        for verb in VERBS.values():
            await ended(partial(verb, stage))
        await ended(stage.kill)
        assert 0 <= await stage.exit() == stage.state().exit_status <= 255
        await stage.delete()


@BOTH
@pytest.mark.parametrize("seed", range(10))
async def test_noise_instead_of_any_answer(tmp_path: Path, seed: int, kept: bool) -> None:
    """It holds no frame but by accident: most often the header of a length that never comes."""
    rng = random.Random(seed)
    noise = raw(lambda _stream: rng.randbytes(rng.randrange(1, 400)))
    async with staged(tmp_path, GOOD, noise, kept=kept) as stage:
        await stage.running()
        await ended(stage.kill)
        assert await stage.exit() == 255
        await stage.delete()


# --- kill --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["never", "garbage for a message", "not found", "a code nobody knows", "another's id"])
async def test_sigkill_that_is_not_carried_out_ends_the_vm(tmp_path: Path, name: str) -> None:
    async with staged(tmp_path, {"SignalProcess": ATTACKS[name].answer}) as stage:
        await stage.running()
        await ended(stage.kill)
        assert await stage.exit() == 255
        assert stage.noted("kill-escalated")


async def test_sigkill_that_is_only_said_to_be_sent_ends_the_vm(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        await stage.running()
        await stage.kill()
        assert await stage.exit() == 255


# --- exits -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("said", "told"), [(256, 255), (-1, 255), (-(2**31), 255), (2**31 - 1, 255), (137, 137)])
async def test_an_exit_code_out_of_range_is_255(tmp_path: Path, said: int, told: int) -> None:
    at_end = {"ReadStdout": payload(b""), "ReadStderr": payload(b"")}
    async with staged(tmp_path, at_end | {"WaitProcess": payload(pb.WaitProcessResponse(status=said))}) as stage:
        await stage.running()
        assert await stage.exit() == told


@pytest.mark.parametrize("ago", [0, 1, 2**63, 2**64 - 1])
async def test_an_end_lies_in_the_life_of_the_process_however_long_ago_it_is_said_to_be(
    tmp_path: Path, ago: int
) -> None:
    at_end = {"ReadStdout": payload(b""), "ReadStderr": payload(b"")}
    before = time.time_ns()
    async with staged(tmp_path, at_end | {"WaitProcess": payload(pb.WaitProcessResponse(ago=ago))}) as stage:
        await stage.running()
        assert await stage.exit() == 0
        end = stage.pod.container("c1").init.exit
        assert end is not None and before <= end.at_ns <= time.time_ns()


async def test_a_wait_answered_with_garbage_is_an_exit_that_is_not_known(tmp_path: Path) -> None:
    at_end = {"ReadStdout": payload(b""), "ReadStderr": payload(b"")}
    async with staged(tmp_path, at_end | {"WaitProcess": ATTACKS["garbage for a message"].answer}) as stage:
        await stage.running()
        assert await stage.exit() == 255
        end = stage.pod.container("c1").init.exit
        assert end is not None and "malformed" in end.unknown


async def test_empty_reads_are_the_end_and_not_a_reason_to_ask_for_ever(tmp_path: Path) -> None:
    async with staged(tmp_path, {"ReadStdout": payload(b""), "ReadStderr": payload(b"")}) as stage:
        await stage.running()
        await until(lambda: stage.guest.calls["WaitProcess"])
        assert stage.guest.calls["ReadStdout"] == stage.guest.calls["ReadStderr"] == 1


# --- output ------------------------------------------------------------------------------------------------------------

ENDLESS = payload(pb.ReadStreamResponse(data=b"x" * (200 << 10)))


def out(stage_dir: Path) -> Stdio:
    path = stage_dir / "out"
    os.mkfifo(path, 0o600)
    return Stdio(stdout=str(path))


async def test_endless_output_without_a_reader_stops_at_a_bound(tmp_path: Path) -> None:
    cost = Cost()
    async with staged(tmp_path, {"ReadStdout": ENDLESS, "ReadStderr": payload(b"")}) as stage:
        await stage.running(out(tmp_path))
        await until(lambda: stage.guest.calls["WaitProcess"])  # the reader is stalled
        asked = stage.guest.calls["ReadStdout"]
        await asyncio.sleep(0.3)
        assert stage.guest.calls["ReadStdout"] == asked
        await stage.kill()
        assert await stage.exit() == 255
        await stage.delete()
    assert cost.megabytes < MOST


async def test_output_in_tiny_pieces_costs_no_more(tmp_path: Path) -> None:
    cost = Cost()
    answers = {"ReadStdout": payload(pb.ReadStreamResponse(data=b"x" * 64)), "ReadStderr": payload(b"")}
    async with staged(tmp_path, answers) as stage:
        await stage.running(out(tmp_path))
        async with asyncio.timeout(60):
            while not stage.guest.calls["WaitProcess"]:  # noqa: ASYNC110 - `until` would spin as fast as the guest
                await asyncio.sleep(0.01)
        assert stage.guest.calls["ReadStdout"] < 15_000
        await stage.kill()
        await stage.exit()
    assert cost.megabytes < MOST


async def test_endless_output_with_a_reader_does_not_keep_kill_or_delete(tmp_path: Path) -> None:
    """The guest says that init has ended and goes on talking all the same."""
    cost, stdio = Cost(), out(tmp_path)
    reader = os.open(stdio.stdout, os.O_RDONLY | os.O_NONBLOCK)
    asyncio.get_running_loop().add_reader(reader, lambda: os.read(reader, 1 << 20))
    try:
        async with staged(tmp_path, {"ReadStdout": ENDLESS, "ReadStderr": payload(b"")}) as stage:
            await stage.running(stdio)
            await until(lambda: stage.guest.calls["ReadStdout"] > 100)
            await stage.kill()
            assert await stage.exit() == 255
            await stage.delete()
    finally:
        asyncio.get_running_loop().remove_reader(reader)
        os.close(reader)
    assert cost.megabytes < MOST


async def test_more_output_than_asked_for_is_cut(tmp_path: Path) -> None:
    """Four megabytes for a question of a quarter of one."""
    cost, stdio = Cost(), out(tmp_path)
    huge = payload(pb.ReadStreamResponse(data=bytes((4 << 20) - 100)))
    async with staged(tmp_path, {"ReadStdout": in_turn([huge] * 3, payload(b"")), "ReadStderr": payload(b"")}) as stage:
        await stage.running(stdio)
        await until(lambda: stage.guest.calls["WaitProcess"])
    assert cost.megabytes < MOST


# --- input -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", [0, 2**32 - 1, 4])
async def test_a_lie_about_stdin_ends_stdin_alone(tmp_path: Path, said: int) -> None:
    fifo = tmp_path / "in"
    os.mkfifo(fifo, 0o600)
    async with staged(tmp_path, {"WriteStdin": payload(pb.WriteStreamResponse(len=said))}) as stage:
        await stage.running(Stdio(stdin=str(fifo)))
        writer = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        os.write(writer, b"abc")
        await until(lambda: stage.guest.calls["WriteStdin"])
        await asyncio.sleep(0.1)
        os.close(writer)
        assert stage.guest.calls["WriteStdin"] == 1
        assert stage.pod.vm_exit is None
        await stage.kill()
        await stage.exit()


# --- memory events -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", ["../../c1", "/etc/passwd", "c1/../c2", "", "x" * 100_000, "c\n1"])
async def test_a_memory_event_of_an_unknown_container_is_not_told(tmp_path: Path, said: str) -> None:
    answers = {"GetOOMEvent": in_turn([payload(pb.OomEvent(container_id=said))], never)}
    async with staged(tmp_path, answers) as stage:
        await stage.running()
        await until(lambda: stage.guest.calls["GetOOMEvent"] == 2)
        assert "OutOfMemory" not in stage.events.names()


async def test_memory_events_in_a_tight_loop_do_not_spin_the_daemon(tmp_path: Path) -> None:
    async with staged(tmp_path, {"GetOOMEvent": payload(pb.OomEvent(container_id="c1"))}) as stage:
        await stage.running()
        await until(lambda: stage.guest.calls["GetOOMEvent"] >= 64)
        cost = Cost()
        await asyncio.sleep(1)
        assert stage.guest.calls["GetOOMEvent"] < 70
        assert cost.cpu < 0.2


# --- health ------------------------------------------------------------------------------------------------------------

CHECKED = Budgets(**{name: getattr(BUDGETS, name) for name in Budgets.__slots__} | {"health_interval": 0.05})


@pytest.mark.parametrize(
    "name", ["never", "garbage for a message", "garbage for an envelope", "a frame too large", "not found"]
)
async def test_an_agent_that_fails_its_health_check_is_a_lost_vm(tmp_path: Path, name: str) -> None:
    async with staged(tmp_path, {"Check": ATTACKS[name].answer}, budgets=CHECKED) as stage:
        await stage.running()
        assert await stage.exit() == 255
        assert stage.noted("agent-lost")


async def test_half_a_reply_that_blocks_all_others_is_found_by_the_health_check(tmp_path: Path) -> None:
    async with staged(
        tmp_path, {"StatsContainer": ATTACKS["a header that promises, then silence"].answer}, budgets=CHECKED
    ) as stage:
        await stage.running()
        with pytest.raises((DeadlineExceeded, Unavailable)):
            await stage.pod.stats("c1")
        assert await stage.exit() == 255


# --- messages ----------------------------------------------------------------------------------------------------------


async def test_counters_of_a_million_devices_are_refused(tmp_path: Path) -> None:
    """Four megabytes of the smallest sub-messages there are would be two million objects."""
    entry = b"\x0a\x00" * 1_900_000
    blkio = b"\x22" + _length(len(entry)) + entry
    answer = payload(b"\x0a" + _length(len(blkio)) + blkio)
    cost = Cost()
    patient = Deadlines(check=5, create_sandbox=5, create_container=DEADLINES.create_container, usual=5)
    async with staged(tmp_path, {"StatsContainer": answer}, deadlines=patient) as stage:
        await stage.running()
        with pytest.raises(AgentRefused, match="malformed"):
            await stage.pod.stats("c1")
    assert cost.megabytes < MOST


def _length(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


async def test_a_refusal_with_a_huge_text_is_cut(tmp_path: Path) -> None:
    async with staged(tmp_path, {"StartContainer": refusal(13, "\x1b" + "x" * 1_000_000)}) as stage:
        await stage.create()
        with pytest.raises(AgentRefused) as caught:
            await stage.pod.start("c1", "")
        assert len(str(caught.value)) < 2200
        assert str(caught.value).isprintable()
