"""`start` hands the caller the first result or failure, and the group everything after."""

import asyncio

import pytest

from kata_shimd import supervise


async def test_start_returns_what_is_passed_to_ready_and_the_task_goes_on():
    done = asyncio.Event()

    async def serve(value, ready):
        ready(value * 2)
        done.set()

    async with asyncio.TaskGroup() as group:
        assert await supervise.start(group, serve, 21, name="serve") == 42
        await done.wait()


async def test_failure_before_ready_is_the_callers_alone():
    async def fail(ready):
        raise ValueError("early")

    async with asyncio.TaskGroup() as group:
        with pytest.raises(ValueError, match="early"):
            await supervise.start(group, fail, name="fail")


async def test_failure_after_ready_is_the_groups():
    async def fail(ready):
        ready(None)
        raise ValueError("late")

    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as group:
            await supervise.start(group, fail, name="fail")
            await asyncio.Event().wait()
    assert caught.group_contains(ValueError, match="late")


async def test_return_without_ready_is_an_error():
    async def forget(ready):
        return None

    async with asyncio.TaskGroup() as group:
        with pytest.raises(RuntimeError, match="without becoming ready"):
            await supervise.start(group, forget, name="forget")


async def test_cancelled_caller_cancels_the_task():
    cancelled = asyncio.Event()

    async def hang(ready):
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with asyncio.TaskGroup() as group:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await supervise.start(group, hang, name="hang")
        await cancelled.wait()


async def test_first_of_returns_the_index_and_ends_the_others():
    never = asyncio.Event()
    assert await supervise.first_of(never.wait(), asyncio.sleep(0)) == 1
    assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]


async def test_shielded_work_is_finished_although_its_caller_goes():
    finished = asyncio.Event()

    async def work():
        await asyncio.sleep(0.01)
        finished.set()

    async with asyncio.TaskGroup() as group:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await supervise.shielded(group, work(), name="work")
    assert finished.is_set()
