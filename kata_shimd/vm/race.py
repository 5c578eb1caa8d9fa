"""Work that makes sense only while something lives."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any


class Ended(Exception):
    """The thing came to its end before the work did."""


@asynccontextmanager
async def while_lives(end: "asyncio.Future[Any]") -> AsyncIterator[None]:
    """Run the block, cut short as soon as ``end`` is done.

    :raises Ended: it was cut short
    """
    loop = asyncio.get_running_loop()
    inside = True

    def cut_short(_: object) -> None:
        if inside:
            cut.reschedule(loop.time())

    try:
        async with asyncio.timeout(None) as cut:
            end.add_done_callback(cut_short)
            try:
                yield
            finally:
                inside = False
                end.remove_done_callback(cut_short)
    except TimeoutError:
        if cut.expired():
            raise Ended from None
        raise
