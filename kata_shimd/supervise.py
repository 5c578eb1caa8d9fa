"""Structured concurrency: what asyncio's TaskGroup lacks.

Every task lives in a TaskGroup. A task whose life is longer than the call that begins it goes through `start`, as
trio's ``nursery.start``: the caller gets its first result or its first failure, the group gets everything after.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context, copy_context
from typing import Any, TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


async def start(
    group: asyncio.TaskGroup,
    function: Callable[[*Ts, Callable[[T], None]], Coroutine[Any, Any, None]],
    *args: *Ts,
    name: str,
    context: Context | None = None,
) -> T:
    """Run ``function(*args, ready)`` in ``group`` and return what it passes to ``ready``.

    A failure before ``ready`` is raised here and not in the group; one after it is the group's. If the caller is cancelled
    while waiting, the task is cancelled and awaited. ``context`` defaults to a copy of the caller's.

    :raises RuntimeError: the function returned without calling ready
    """
    first: asyncio.Future[T] = asyncio.get_running_loop().create_future()

    def ready(value: T) -> None:
        if not first.done():
            first.set_result(value)

    async def run() -> None:
        try:
            await function(*args, ready)
        except BaseException as error:
            if first.done():
                raise
            first.set_exception(error if isinstance(error, Exception) else asyncio.CancelledError())
        else:
            if not first.done():
                first.set_exception(RuntimeError(f"{name} ended without becoming ready"))

    task = group.create_task(run(), name=name, context=context or copy_context())
    try:
        return await first
    except asyncio.CancelledError:
        task.cancel()
        raise


async def shielded(group: asyncio.TaskGroup, work: Coroutine[Any, Any, T], *, name: str) -> T:
    """Await ``work`` in a task of ``group``: the caller may be cancelled, the work is finished all the same."""
    task = group.create_task(work, name=name)
    return await asyncio.shield(task)


async def first_of(*waits: Awaitable[Any]) -> int:
    """Wait until one of ``waits`` is done, cancel the others, and return its index. A failure of it is raised."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]  # noqa: TID251 - owned and ended by this call
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        index = min(tasks.index(task) for task in done)
        tasks[index].result()
        return index
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
