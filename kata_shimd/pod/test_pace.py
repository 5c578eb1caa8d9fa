"""Pace: a burst at once, then a steady rate."""

import asyncio

from kata_shimd.pod.pace import Pace


async def test_a_burst_passes_at_once_and_the_rest_at_the_rate():
    loop, pace = asyncio.get_running_loop(), Pace(5, 0.02)
    began = loop.time()
    for _ in range(5):
        await pace.turn()
    assert loop.time() - began < 0.02
    for _ in range(5):
        await pace.turn()
    assert loop.time() - began >= 5 * 0.02 - 0.005


async def test_a_rest_earns_the_burst_again_and_no_more():
    loop, pace = asyncio.get_running_loop(), Pace(2, 0.01)
    for _ in range(2):
        await pace.turn()
    await asyncio.sleep(0.1)
    began = loop.time()
    for _ in range(4):
        await pace.turn()
    assert loop.time() - began >= 2 * 0.01 - 0.005
