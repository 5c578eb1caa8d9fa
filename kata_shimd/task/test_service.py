"""The Task service over ttrpc, on a pod with a guest in memory: codes, both versions, and what containerd relies on."""

import asyncio
import gc
import json
from contextlib import asynccontextmanager

import pytest

from kata_shimd import wire
from kata_shimd.api import pod as pod_pb
from kata_shimd.api import runc_options, wkt
from kata_shimd.api.services import pod as pod_rpcs
from kata_shimd.api.services import task_v2, task_v3
from kata_shimd.errors import Code, ShimError
from kata_shimd.pod import testing
from kata_shimd.pod.conftest import BUDGETS, PROCESS
from kata_shimd.pod.container import Container
from kata_shimd.pod.pod import Pod, South
from kata_shimd.pod.process import Process
from kata_shimd.pod.pump import Input, Output
from kata_shimd.task.abandon import Abandonment
from kata_shimd.task.boundary import boundary
from kata_shimd.task.service import TaskService
from kata_shimd.task.serving import services
from kata_shimd.ttrpc import RpcError
from kata_shimd.ttrpc.testing import memory_pair

#: What is asked of the daemon, and not of its pod.
OWN = {
    "Describe": lambda _request: pod_pb.DescribeResponse(pid=7),
    "Upgrade": lambda request: pod_pb.UpgradeResponse(version=request.python),
}


class Shim:
    """A client of a served pod."""

    def __init__(self, client, pod, starter, notes, tmp) -> None:
        self.client, self.pod, self.starter, self.notes, self.tmp = client, pod, starter, notes, tmp

    async def __call__(self, rpc, **fields):
        reply = await self.client.call(rpc.service, rpc.name, wire.encode(rpc.request(**fields)), timeout=5)
        return wire.decode(rpc.response, reply)

    async def create(self, name="c1", service=task_v2, kind="", **fields):
        bundle = self.tmp / name
        (bundle / "rootfs").mkdir(parents=True, exist_ok=True)
        notes = {"io.kubernetes.cri.container-type": kind} if kind else {}
        config = {"process": PROCESS, "root": {"path": "rootfs"}, "annotations": notes}
        (bundle / "config.json").write_text(json.dumps(config))
        return await self(service.CREATE, id=name, bundle=str(bundle), **fields)

    async def code(self, rpc, **fields):
        with pytest.raises(RpcError) as caught:
            await self(rpc, **fields)
        return caught.value.code


@pytest.fixture
def shim(tmp_path):
    class Done(Exception):
        pass

    @asynccontextmanager
    async def make():
        starter, notes = testing.Starter(), []
        try:
            async with asyncio.TaskGroup() as group:
                south = South(starter, testing.Files(), testing.Streams(), testing.Events())
                pod = Pod(south, group, BUDGETS, note=lambda event, **more: notes.append((event, more)))
                pod.begin()
                abandonment = Abandonment(group, pod.abandon)
                table = services(TaskService(pod), abandonment, OWN)
                async with memory_pair(
                    table, boundary=boundary(pod._note), on_lost=abandonment.lost, drain_budget=0
                ) as (client, _):
                    yield Shim(client, pod, starter, notes, tmp_path)
                raise Done
        except* Done:
            pass

    return make


@pytest.mark.parametrize("service", [task_v2, task_v3], ids=["v2", "v3"])
async def test_both_versions_are_one_service(shim, service):
    async with shim() as s:
        assert (await s.create(service=service)).pid == testing.Machine.pid
        assert (await s(service.START, id="c1")).pid == testing.Machine.pid
        state = await s(service.STATE, id="c1")
        assert (state.status, state.id, state.pid) == (2, "c1", testing.Machine.pid)
        await s(service.KILL, id="c1", signal=15)
        assert (await s(service.WAIT, id="c1")).exit_status == 143
        gone = await s(service.DELETE, id="c1")
        assert gone.exit_status == 143 and gone.exited_at.seconds > 0
        await s(service.SHUTDOWN, id="c1")
        assert s.pod.stopping.is_set()


@pytest.mark.parametrize(
    "rpc",
    [r for r in task_v2.SERVICE if r.name not in ("Connect", "Shutdown", "Create")],
    ids=lambda r: r.name,
)
async def test_unknown_container_is_not_found(shim, rpc):
    async with shim() as s:
        assert await s.code(rpc, id="nope") is Code.NOT_FOUND


async def test_connect_answers_for_an_unknown_container(shim):
    async with shim() as s:
        reply = await s(task_v2.CONNECT, id="nope")
        assert reply.shim_pid > 0 and reply.task_pid == 0


async def test_checkpoint_is_unimplemented(shim):
    async with shim() as s:
        await s.create()
        assert await s.code(task_v2.CHECKPOINT, id="c1") is Code.UNIMPLEMENTED


@pytest.mark.parametrize("service", [task_v2, task_v3], ids=["v2", "v3"])
async def test_create_never_answers_unimplemented(shim, service):
    """containerd 2.x takes that for a shim without v3, and sends the Create a second time as v2."""
    mapped = {"process": PROCESS, "root": {"path": "rootfs"}, "linux": {"uidMappings": [{"size": 1}]}}
    async with shim() as s:
        assert await s.code(service.CREATE, id="c1", checkpoint="/x") is Code.FAILED_PRECONDITION
        (s.tmp / "rootfs").mkdir()
        (s.tmp / "config.json").write_text(json.dumps(mapped))
        assert await s.code(service.CREATE, id="c1", bundle=str(s.tmp)) is Code.FAILED_PRECONDITION


async def test_pids_is_never_empty_for_a_live_or_stopped_task(shim):
    async with shim() as s:
        await s.create()
        assert [p.pid for p in (await s(task_v2.PIDS, id="c1")).processes] == [testing.Machine.pid]
        await s(task_v2.KILL, id="c1", signal=9)
        await s(task_v2.WAIT, id="c1")
        assert (await s(task_v2.PIDS, id="c1")).processes


async def test_pids_names_the_execs_that_run(shim):
    """As runc's shim does: one that has not been started or has ended is no process of the container."""
    async with shim() as s:
        await s.create()
        await s(task_v2.START, id="c1")
        for exec_id in ("ended", "running", "added"):
            await s(task_v2.EXEC, id="c1", exec_id=exec_id, spec=wkt.Any(value=json.dumps(PROCESS).encode()))
        for exec_id in ("ended", "running"):
            await s(task_v2.START, id="c1", exec_id=exec_id)
        await s(task_v2.KILL, id="c1", exec_id="ended", signal=9)
        await s(task_v2.WAIT, id="c1", exec_id="ended")
        told = [process.info for process in (await s(task_v2.PIDS, id="c1")).processes]
        execs = [wire.unpack(info, runc_options.ProcessDetails).exec_id for info in told if info is not None]
        assert len(told) == 2 and execs == ["running"]


async def test_exec_process_that_is_no_json_is_invalid(shim):
    async with shim() as s:
        await s.create()
        await s(task_v2.START, id="c1")
        assert await s.code(task_v2.EXEC, id="c1", exec_id="e", spec=wkt.Any(value=b"{")) is Code.INVALID_ARGUMENT
        assert await s.code(
            task_v2.EXEC, id="c1", exec_id="../e", spec=wkt.Any(value=json.dumps(PROCESS).encode())
        ) is (Code.INVALID_ARGUMENT)


async def test_state_answers_while_create_waits_for_the_boot(shim):
    async with shim() as s, asyncio.TaskGroup() as group:
        s.starter.hold.clear()
        creating = group.create_task(s.create())
        await asyncio.sleep(0)
        assert await s.code(task_v2.STATE, id="c1") is Code.NOT_FOUND
        s.starter.hold.set()
        await creating


async def test_create_is_finished_although_its_caller_gave_up(shim):
    async with shim() as s, asyncio.TaskGroup() as group:
        s.starter.hold.clear()
        creating = group.create_task(s.create())
        await testing.until(lambda: s.pod._creating)
        creating.cancel()
        s.starter.hold.set()
        await testing.until(lambda: "c1" in s.pod.containers)


async def test_a_bug_is_unknown_and_names_where_to_look(shim, monkeypatch):
    async with shim() as s:
        monkeypatch.setattr(s.pod, "create", None)
        with pytest.raises(RpcError, match="this is a bug") as caught:
            await s.create()
        assert caught.value.code is Code.UNKNOWN


async def test_every_rpc_is_in_the_journal_with_its_error(shim):
    async with shim() as s:
        await s.code(task_v2.KILL, id="nope", signal=9)
        event, more = s.notes[-1]
        assert (event, more["rpc"], more["code"]) == ("rpc", "Kill", "NOT_FOUND")
        assert "no such container" in more["error"]
        assert more["container"] == "nope"


async def test_a_call_that_came_without_a_container_is_not_told_of_the_one_before(shim):
    async with shim() as s:
        await s.create()
        await s.code(task_v2.STATE, id="nope")
        with pytest.raises(RpcError):
            await s.client.call(task_v2.SERVICE.name, "Kill", b"\xff", timeout=10)
        event, more = s.notes[-1]
        assert (event, more["rpc"], more["code"]) == ("rpc", "Kill", "INVALID_ARGUMENT")
        assert "container" not in more


async def test_what_takes_long_is_in_the_journal_when_it_begins(shim):
    async with shim() as s:
        await s.create()
        said = [(event, more["rpc"]) for event, more in s.notes if event in ("rpc-began", "rpc")]
        assert said == [("rpc-began", "Create"), ("rpc", "Create")]


async def test_abandon_does_no_harm_while_containerd_holds_the_container(shim):
    async with shim() as s:
        await s.create()
        await s(task_v2.START, id="c1")
        rpc = pod_rpcs.ABANDON
        await s.client.call(rpc.service, rpc.name, wire.encode(pod_pb.AbandonRequest(id="c1")))
        await asyncio.sleep(0)
        assert "c1" in s.pod.containers
        s.client.close()
        await testing.until(lambda: not s.pod.containers)
        assert s.pod.stopping.is_set()


@pytest.fixture
def held(monkeypatch):
    """Holds every Create until it is set; ``begun`` says that one waits."""
    let_go, begun = asyncio.Event(), asyncio.Event()
    share = testing.Files.share_rootfs

    async def wait(files, *args):
        begun.set()
        await let_go.wait()
        await share(files, *args)

    monkeypatch.setattr(testing.Files, "share_rootfs", wait)
    let_go.begun = begun
    return let_go


async def test_create_is_undone_when_its_caller_has_gone(shim, held):
    async with shim() as s, asyncio.TaskGroup() as group:
        caller = group.create_task(refused(s.create()))
        await held.begun.wait()
        s.client.close()
        assert await caller is None
        await testing.until(lambda: ("abandoned", {"container": "c1"}) in s.notes)
        held.set()
        await s.pod.stopping.wait()
        assert s.pod.containers == {} and s.starter.guest.processes == {}


async def test_create_is_undone_when_it_was_given_up_meanwhile(shim, held):
    """containerd's deadline has passed and it runs `delete`; Create ends only then."""
    async with shim() as s, asyncio.TaskGroup() as group:
        caller = group.create_task(refused(s.create()))
        await held.begun.wait()
        removed = group.create_task(s.pod.abandon("c1"))
        await asyncio.sleep(0)
        assert not removed.done(), "it is over when nothing is left, for what is over is forgotten"
        held.set()
        assert await caller is Code.UNAVAILABLE
        await removed
        assert s.pod.containers == {} and s.pod.stopping.is_set()


async def test_what_was_given_up_is_on_record_until_it_is_gone():
    """An `Abandonment` of a later daemon goes on where an earlier one was killed."""
    log, hold = [], asyncio.Event()

    async def remove(container_id):
        await hold.wait()
        log.append(container_id)

    async with asyncio.TaskGroup() as group:
        record = {
            "record_given_up": lambda ids: log.append(set(ids)),
            "record_removing": lambda ids: log.append(set(ids)),
        }
        first = Abandonment(group, remove, spoken={"c7": ["a"]}, **record)
        first.abandon(pod_pb.AbandonRequest(id="a"))
        first.abandon(pod_pb.AbandonRequest(id="b"))
        with first.creating("c8", "c"):
            first.lost("c8")
        assert log == [{"a"}, {"a", "b"}, {"b"}, {"a"}, {"b", "c"}]
        log.clear()
        second = Abandonment(group, remove, spoken={"c7": ["a"]}, given_up=["a"], **record)
        second.finish(["c"], remove)
        second.lost("c7")
        assert log == [{"c"}, {"a", "c"}, set()]
        hold.set()
    assert log[-1] == set()


async def refused(call):
    """The code a call is refused with; None when nobody answered it."""
    try:
        await call
    except RpcError as error:
        return error.code
    except ShimError:
        return None
    raise AssertionError("it succeeded")


# --- flatness: what a soak cannot see from outside ------------------------------------------------------------------


async def _one_life(s, name):
    """A container and an exec, from Create to Delete, over the wire."""
    await s.create(name, kind="container")
    await s(task_v2.START, id=name)
    spec = wkt.Any(type_url="x", value=json.dumps(PROCESS).encode())
    await s(task_v2.EXEC, id=name, exec_id="e", spec=spec)
    await s(task_v2.START, id=name, exec_id="e")
    for exec_id in ("e", ""):
        await s(task_v2.KILL, id=name, exec_id=exec_id, signal=9)
        await s(task_v2.WAIT, id=name, exec_id=exec_id)
        await s(task_v2.DELETE, id=name, exec_id=exec_id)


async def test_lives_that_are_over_leave_no_task_and_no_object(shim):
    async with shim() as s:
        await s.create("sandbox", kind="sandbox")
        await _one_life(s, "first")
        before = await _left()
        assert before["Container"] == before["Process"] == 1, "the sandbox is counted"
        for number in range(20):
            await _one_life(s, f"c{number}")
        await testing.until(lambda: len(asyncio.all_tasks()) <= before["tasks"])
        assert await _left() == before


async def _left():
    """Tasks, and objects that belong to a container, that are still there."""
    gc.collect()
    kinds = (Container, Process, Output, Input)
    counts = {kind.__name__: sum(isinstance(item, kind) for item in gc.get_objects()) for kind in kinds}
    return counts | {"tasks": len(asyncio.all_tasks())}
