"""Work in a namespace: in a thread of its own that ends, whatever becomes of who asked."""

import asyncio
import os
import threading
from pathlib import Path

import pytest

from kata_shimd.errors import HostFailed
from kata_shimd.net.namespace import Namespace


class Here(Namespace):
    """The namespace we are in, which anybody may enter who may enter any."""

    def __init__(self):
        super().__init__(Path("/proc/self/ns/net"), os.open("/proc/self/ns/net", os.O_RDONLY))


@pytest.fixture
def here():
    space = Here()
    yield space
    space.close()


async def test_work_is_done_in_another_thread_that_ends(here):
    done = await here.run(threading.current_thread)
    done.join(5)
    assert done is not threading.main_thread() and not done.is_alive()


async def test_what_work_raises_is_raised(here):
    def work():
        raise HostFailed("open tap", "tap0", "busy")

    with pytest.raises(HostFailed, match="open tap: tap0: busy"):
        await here.run(work)


async def test_a_caller_that_has_gone_is_not_told(here):
    begun, go = threading.Event(), threading.Event()

    def work():
        begun.set()
        go.wait(5)

    task = asyncio.get_running_loop().create_task(here.run(work))
    await asyncio.to_thread(begun.wait, 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go.set()
    await here.run(lambda: None)


def test_a_loop_that_has_ended_is_not_told(here):
    begun, go = threading.Event(), threading.Event()

    def work():
        begun.set()
        go.wait(5)

    async def leave():
        task = asyncio.get_running_loop().create_task(here.run(work))
        await asyncio.to_thread(begun.wait, 5)
        task.cancel()

    asyncio.run(leave())
    [thread] = [thread for thread in threading.enumerate() if thread.name == "netns"]
    go.set()
    thread.join(5)
    assert not thread.is_alive()


async def test_a_file_that_is_no_namespace_cannot_be_entered(tmp_path):
    (tmp_path / "plain").touch()
    space = Namespace(tmp_path / "plain", os.open(tmp_path / "plain", os.O_RDONLY))
    with pytest.raises(HostFailed, match="enter network namespace"):
        await space.run(lambda: None)
    space.close()


def test_the_pinned_path_is_the_same_namespace(here):
    assert here.pinned.stat().st_ino == Path("/proc/self/ns/net").stat().st_ino
