"""Whose processes a container sees that was given a PID namespace by a path."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

import pytest

from kata_shimd.errors import Unimplemented
from kata_shimd.pod import target
from kata_shimd.pod.conftest import NO_STDIO, PROCESS, World
from kata_shimd.pod.values import CreateSpec

Worlds = Callable[[], AbstractAsyncContextManager[World]]
OWN = ""
QEMUS = "/proc/4242/ns/pid"


async def run(world: World, name: str, kind: str = "container", pid: str = OWN) -> None:
    bundle = world.tmp / name
    (bundle / "rootfs").mkdir(parents=True)
    notes = {"io.kubernetes.cri.container-type": kind}
    linux = {"namespaces": [{"type": "mount"}, {"type": "pid", **({"path": pid} if pid else {})}]}
    spec = {"process": PROCESS, "root": {"path": "rootfs"}, "annotations": notes, "linux": linux}
    (bundle / "config.json").write_text(json.dumps(spec))
    await world.pod.create(CreateSpec(name, bundle, (), NO_STDIO))
    await world.pod.start(name, "")


def joined(world: World, name: str) -> str:
    """The path of the PID namespace as the guest was told it."""
    spaces = world.guest.specs[name]["linux"]["namespaces"]
    return "".join(item.get("path", "") for item in spaces if item["type"] == "pid")


@pytest.fixture
async def pod(world: Worlds) -> AsyncIterator[World]:
    """With a sandbox, whose PID namespace is its own as every sandbox's."""
    async with world() as made:
        made.guest.extra = frozenset({target.FEATURE})
        await run(made, "sandbox", "sandbox")
        yield made


async def test_the_pods_where_all_share_it(pod: World) -> None:
    """Also when one has asked for its own since, which Kubernetes' pods do not."""
    await run(pod, "a", pid=QEMUS)
    await run(pod, "own")
    await run(pod, "b", pid=QEMUS)
    assert pod.guest.sharing == {"a", "b"}
    assert (joined(pod, "a"), joined(pod, "b")) == ("", "")


async def test_the_targets_where_none_does(pod: World) -> None:
    """Another debugger is no target; nor is a container that has ended, as those have that ran before the others."""
    await run(pod, "init")
    pod.guest.process("init").end(0)
    await pod.pod.container("init").init.wait()
    await run(pod, "app")
    for name in ("a", "b"):
        await run(pod, name, pid=QEMUS)
        assert joined(pod, name) == "container:app"
    assert pod.guest.sharing == set()


async def test_a_target_that_may_be_any_of_several(pod: World) -> None:
    await run(pod, "app")
    await run(pod, "sidecar")
    with pytest.raises(Unimplemented, match="debugger: it may be meant for any of 2 containers"):
        await run(pod, "debugger", pid=QEMUS)
    assert "debugger" not in pod.guest.specs


async def test_an_agent_that_cannot(pod: World) -> None:
    await run(pod, "app")
    pod.guest.extra = frozenset()
    with pytest.raises(Unimplemented, match="the guest's agent cannot let it join app"):
        await run(pod, "debugger", pid=QEMUS)


async def test_a_target_whose_bundle_is_gone_is_none(pod: World) -> None:
    await run(pod, "app")
    (pod.tmp / "app/config.json").unlink()
    await run(pod, "debugger", pid=QEMUS)
    assert pod.guest.sharing == {"debugger"}
