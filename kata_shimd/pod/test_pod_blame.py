"""A request under way when the VM ends is answered with what ended the VM, not with the channel that went with it."""

import asyncio

import pytest

from kata_shimd.errors import Unavailable, VmFailed
from kata_shimd.pod import testing

DIED = "virtiofsd ended with status -9"
REQUESTS = {
    "create_container": lambda w: w.create("c2", "container"),
    "start_container": lambda w: w.pod.start("c1", ""),
    "exec_process": lambda w: w.pod.start("c1", "e1"),
    "update_container": lambda w: w.pod.update("c1", {}),
    "stats_container": lambda w: w.pod.stats("c1"),
}


@pytest.fixture
def ready(world):
    """A pod with a container to which the request has not been made yet."""

    async def make(w, rpc):
        await w.create("c1", "sandbox")
        if rpc != "start_container":
            await w.pod.start("c1", "")
            await w.exec()
        w.guest.silent.add(rpc)

    return make


@pytest.mark.parametrize("rpc", REQUESTS)
async def test_the_end_of_the_vm_is_named(world, ready, rpc):
    async with world() as w:
        await ready(w, rpc)

        async def ask() -> None:
            with pytest.raises(VmFailed, match=DIED):
                await REQUESTS[rpc](w)

        async with asyncio.TaskGroup() as group:
            group.create_task(ask())
            await testing.until(lambda: any(call[0] == rpc for call in w.guest.calls))
            w.guest.die()
            await asyncio.sleep(0)
            w.starter.machine.end(DIED)


async def test_a_channel_that_ends_alone_is_named_itself(world, ready):
    async with world() as w:
        await ready(w, "update_container")

        async def ask() -> None:
            with pytest.raises(Unavailable, match="the guest is gone"):
                await REQUESTS["update_container"](w)

        async with asyncio.TaskGroup() as group:
            group.create_task(ask())
            await testing.until(lambda: ("update_container", "c1") in w.guest.calls)
            w.guest.die()
