"""pytest plugin (``-p integration.harness.on_uvloop``): every asynchronous test runs on uvloop, as the daemon does by default."""

import asyncio

import uvloop


def pytest_configure() -> None:
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
