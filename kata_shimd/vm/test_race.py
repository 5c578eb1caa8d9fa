"""`while_lives`: work ends with the thing it is for."""

import asyncio

import pytest

from kata_shimd.vm.race import Ended, while_lives


def future():
    return asyncio.get_running_loop().create_future()


def test_work_that_finishes_is_not_disturbed(run):
    async def body():
        end = future()
        async with while_lives(end):
            await asyncio.sleep(0)
        end.set_result(None)
        await asyncio.sleep(0.01)
        return "done"

    assert run(body()) == "done"


def test_work_is_cut_short(run):
    async def body():
        end = future()
        asyncio.get_running_loop().call_soon(end.set_result, None)
        with pytest.raises(Ended):
            async with while_lives(end):
                await asyncio.sleep(60)

    run(body())


def test_something_already_dead(run):
    async def body():
        end = future()
        end.set_result(None)
        with pytest.raises(Ended):
            async with while_lives(end):
                await asyncio.sleep(60)

    run(body())


def test_a_timeout_of_the_works_own_stays_one(run):
    async def body():
        with pytest.raises(TimeoutError):
            async with while_lives(future()), asyncio.timeout(0.01):
                await asyncio.sleep(60)

    run(body())


def test_an_end_in_the_last_moment_is_no_failure(run):
    """The callback may already be on its way when the block is left."""

    async def body():
        end = future()
        async with while_lives(end):
            end.set_result(None)
        await asyncio.sleep(0)
        return "done"

    assert run(body()) == "done"


def test_being_cancelled_is_being_cancelled(run):
    async def body():
        async with asyncio.TaskGroup() as group:
            task = group.create_task(wait())
            await asyncio.sleep(0)
            task.cancel()
        return task.cancelled()

    async def wait():
        async with while_lives(future()):
            await asyncio.sleep(60)

    assert run(body())
