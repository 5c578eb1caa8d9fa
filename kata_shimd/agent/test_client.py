"""The agent's client against a ttrpc server in memory, which is as hostile as a guest can be."""

import asyncio
import socket
import time
from functools import partial

import pytest

from kata_shimd import wire
from kata_shimd.agent import client
from kata_shimd.agent.client import AgentClient, Deadlines
from kata_shimd.api import agent as pb
from kata_shimd.api import agent_types as types
from kata_shimd.api import wkt
from kata_shimd.api.services import agent as rpcs
from kata_shimd.errors import AgentRefused, Code, DeadlineExceeded, NotFound, Unavailable
from kata_shimd.pod.network import Address, Interface, Neighbour, Route
from kata_shimd.ttrpc.server import Server
from kata_shimd.ttrpc.service import Method, Service


class Guest:
    """Serves what ``answers`` says, by method name; the last request is kept."""

    def __init__(self, **answers) -> None:
        self.requests = []
        self.services = [
            Service(
                rpcs.SERVICE.name,
                {
                    rpc.name: Method(
                        handler=partial(self._answer, answers[rpc.name]),
                        decode=partial(wire.decode, rpc.request),
                        encode=lambda reply: reply if isinstance(reply, bytes) else wire.encode(reply),
                    )
                    for rpc in rpcs.SERVICE
                    if rpc.name in answers
                },
            )
        ]

    async def _answer(self, answer, _call, request):
        self.requests.append(request)
        if isinstance(answer, Exception):
            raise answer
        if answer is None:
            await asyncio.Event().wait()
        return answer


async def talk(guest, work, deadline=5.0):
    ours, theirs = socket.socketpair()
    async with Server(None, guest.services, drain_budget=0) as server:
        server.adopt(theirs)
        agent = AgentClient(
            ours, Deadlines(check=deadline, create_sandbox=deadline, create_container=deadline, usual=deadline)
        )
        try:
            return await work(agent)
        finally:
            agent.close()


@pytest.mark.parametrize("said", [0, 137, 255])
async def test_exit_status_is_the_guests(said):
    guest = Guest(WaitProcess=pb.WaitProcessResponse(status=said))
    assert await talk(guest, lambda agent: agent.wait_process("c", "")) == said
    assert guest.requests[0].exec_id == "c"


@pytest.mark.parametrize("said", [256, -1, 2**31 - 1])
async def test_exit_status_out_of_range_is_refused(said):
    guest = Guest(WaitProcess=pb.WaitProcessResponse(status=said))
    with pytest.raises(AgentRefused, match=f"it says exit status {said}"):
        await talk(guest, lambda agent: agent.wait_process("c", ""))


async def test_a_guest_that_tells_how_long_ago_it_was():
    hour = 3600 * 10**9
    guest = Guest(WaitProcess=pb.WaitProcessResponse(status=7, ago=hour))
    before = time.time_ns()
    ended = await talk(guest, lambda agent: agent.wait_process("c", ""))
    assert (ended, ended.earlier) == (7, False)
    assert before <= ended.at + hour <= time.time_ns()


async def test_a_guest_that_does_not_tell_how_long_ago_it_was():
    """Kata's."""
    guest = Guest(WaitProcess=pb.WaitProcessResponse(status=7))
    assert (await talk(guest, lambda agent: agent.wait_process("c", ""))).at == 0


async def test_more_output_than_asked_for_is_cut():
    guest = Guest(ReadStdout=pb.ReadStreamResponse(data=b"x" * 100))
    assert await talk(guest, lambda agent: agent.read_stdout("c", "", 10)) == b"x" * 10


@pytest.mark.parametrize("taken", [0, 4, 2**32 - 1])
async def test_a_lie_about_stdin_is_refused(taken):
    guest = Guest(WriteStdin=pb.WriteStreamResponse(len=taken))
    with pytest.raises(AgentRefused, match="it says it took"):
        await talk(guest, lambda agent: agent.write_stdin("c", "", b"abc"))


async def test_status_of_the_guest_is_kept_and_its_text_made_harmless():
    guest = Guest(StartContainer=NotFound("start", "c", "no\x1b[31m such\nthing"))
    with pytest.raises(AgentRefused, match=r"agent StartContainer: c: start: c: no \[31m such thing") as caught:
        await talk(guest, lambda agent: agent.start_container("c"))
    assert caught.value.code is Code.NOT_FOUND


async def test_no_answer_is_deadline_exceeded():
    guest = Guest(StartContainer=None)
    with pytest.raises(DeadlineExceeded, match=r"agent StartContainer: c: no answer within 0\.05 s"):
        await talk(guest, lambda agent: agent.start_container("c"), deadline=0.05)


async def test_garbage_is_the_guests_refusal():
    """Not an error of our caller's, which InvalidArgument would say."""
    guest = Guest(WaitProcess=b"\x0a\xff\xff")
    with pytest.raises(AgentRefused, match="agent WaitProcess: c: its reply is malformed") as caught:
        await talk(guest, lambda agent: agent.wait_process("c", ""))
    assert caught.value.code is Code.DATA_LOSS


async def test_a_lost_channel_fails_every_call_and_is_told():
    ours, theirs = socket.socketpair()
    agent = AgentClient(ours, Deadlines())
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(_lost(agent.wait_process("c", "")))
        gone = group.create_task(agent.gone())
        await asyncio.sleep(0)
        theirs.close()
        await waiting
        assert await gone


async def _lost(call):
    with pytest.raises(Unavailable, match="the channel to the guest is lost"):
        await call


async def test_spec_reaches_the_guest():
    guest = Guest(CreateContainer=wkt.Empty())
    spec = {"process": {"args": ["a", ""], "cwd": "/", "oomScoreAdj": -5}, "linux": {"namespaces": [{"type": "pid"}]}}
    await talk(guest, lambda agent: agent.create_container("c", spec, (), sandbox_pidns=True))
    (request,) = guest.requests
    assert request.oci.process.args == ["a", ""]
    assert request.oci.process.oom_score_adj == -5
    assert request.oci.linux.namespaces[0].type == "pid"
    assert request.sandbox_pidns


async def test_the_network_in_the_agents_words():
    guest = Guest(UpdateInterface=types.Interface(), UpdateRoutes=pb.Routes(), AddARPNeighbors=wkt.Empty())
    addresses = (Address("10.0.0.2", 24), Address("fd00::2", 64))
    interface = Interface(
        name="eth0", mac="02:00:00:00:00:02", mtu=9000, addresses=addresses, no_arp=True, device_path="10.0/00"
    )
    route = Route(device="eth0", destination="fd01::/48", gateway="fd00::1", scope=253, flags=4, mtu=1400, is_v6=True)
    neighbour = Neighbour(device="eth0", ip="10.0.0.1", mac="02:00:00:00:00:01", state=128, flags=2)

    async def work(agent):
        await agent.update_interface(interface)
        await agent.update_routes((route,))
        await agent.add_neighbours((neighbour,))

    await talk(guest, work)
    first, second, third = guest.requests
    said = first.interface
    assert (said.name, said.hw_addr, said.mtu, said.raw_flags, said.device_path) == (
        "eth0", "02:00:00:00:00:02", 9000, 0x80, "10.0/00",
    )  # fmt: skip
    assert [(item.address, item.mask, item.family) for item in said.ip_addresses] == [
        ("10.0.0.2", "24", types.IpFamily.v4),
        ("fd00::2", "64", types.IpFamily.v6),
    ]
    [said] = second.routes.routes
    assert (said.dest, said.gateway, said.device, said.scope, said.flags, said.mtu, said.family) == (
        "fd01::/48", "fd00::1", "eth0", 253, 4, 1400, types.IpFamily.v6,
    )  # fmt: skip
    [said] = third.neighbors.arp_neighbors
    assert (said.to_ip_address.address, said.device, said.lladdr, said.state, said.flags) == (
        "10.0.0.1", "eth0", "02:00:00:00:00:01", 128, 2,
    )  # fmt: skip


async def test_calls_wait_for_the_channel_and_fail_without_one():
    agent = AgentClient(None, Deadlines(check=1, create_sandbox=1, create_container=1, usual=1))
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(_failure(agent.check()))
        await asyncio.sleep(0)
        assert not waiting.done()
        agent.fail(NotFound("boot", "VM", "none"))
    assert isinstance(waiting.result(), Unavailable)


async def test_a_channel_that_turned_out_to_be_of_no_use_is_given_up():
    """The boot fails behind the dial: the failure is told once, and is not another one."""
    ours, theirs = socket.socketpair()
    agent = AgentClient(ours, Deadlines(check=1, create_sandbox=1, create_container=1, usual=1))
    agent.fail(NotFound("boot", "VM", "none"))
    assert isinstance(await _failure(agent.check()), Unavailable)
    theirs.close()


async def _failure(call):
    try:
        await call
    except Unavailable as error:
        return error
    raise AssertionError("it did not fail")


async def test_a_copy_is_given_randomness_and_then_the_time():
    guest = Guest(ReseedRandomDev=wkt.Empty(), SetGuestDateTime=wkt.Empty())
    before = time.time_ns() // 1000
    await talk(guest, lambda agent: agent.become_another(b"seed" * 128))
    seed, clock = guest.requests
    assert seed.data == b"seed" * 128
    assert before <= clock.sec * 1_000_000 + clock.usec <= time.time_ns() // 1000
    assert 0 <= clock.usec < 1_000_000


async def test_time_that_was_long_on_its_way_is_told_again(monkeypatch):
    guest = Guest(ReseedRandomDev=wkt.Empty(), SetGuestDateTime=wkt.Empty())
    monkeypatch.setattr(client, "PRECISE", -1.0)
    await talk(guest, lambda agent: agent.become_another(b"seed"))
    assert len(guest.requests) == 1 + client.TELLS


async def test_a_copy_that_does_not_become_another_is_told_plainly():
    with pytest.raises(AgentRefused):
        await talk(Guest(ReseedRandomDev=wkt.Empty()), lambda agent: agent.become_another(b"seed"))


async def test_an_agent_that_cannot_be_copied_says_so():
    with pytest.raises(AgentRefused) as caught:
        await talk(Guest(), lambda agent: agent.prepare())
    assert caught.value.code in (Code.UNIMPLEMENTED, Code.NOT_FOUND)
