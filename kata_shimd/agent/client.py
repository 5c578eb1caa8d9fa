"""The agent's client: the domain's `Agent` port over a ttrpc connection.

Each RPC is a row: its descriptor and which deadline it has. The long polls (wait, read, write, memory events) have none;
they end with the process, or with the channel.
"""

import asyncio
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from betterproto2 import Message

from kata_shimd import wire
from kata_shimd.agent import network, oci
from kata_shimd.api import agent as pb
from kata_shimd.api import pod as own
from kata_shimd.api import wkt
from kata_shimd.api.descriptors import MethodDescriptor
from kata_shimd.api.services import agent as rpcs
from kata_shimd.api.services import guest, health
from kata_shimd.errors import AgentRefused, Code, DeadlineExceeded, InvalidArgument, ShimError, Unavailable
from kata_shimd.pod.network import Interface, Neighbour, Route
from kata_shimd.pod.values import Chunk, Ended, GuestStorage, Sandbox, Taken, Told
from kata_shimd.ttrpc.client import Client
from kata_shimd.ttrpc.service import RpcError

RequestT = TypeVar("RequestT", bound=Message)
ResponseT = TypeVar("ResponseT", bound=Message)

#: Longest text of the guest's that is passed on in an error.
MAX_TEXT: Final = 2048
#: The largest exit status there is.
MAX_STATUS: Final = 255
#: One stdin write; with its envelope far below ttrpc's limit.
MAX_WRITE: Final = 1 << 20
#: What a guest is told of the time is right within what its answer took, in seconds; more than that, and it is told again, so often
#: at most.
PRECISE: Final = 0.04
TELLS: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """Seconds, already scaled to the accelerator (`kata.md` §3.1)."""

    check: float = 30.0
    create_sandbox: float = 60.0
    create_container: float = 60.0
    usual: float = 60.0


class AgentClient:
    """Calls of the agent's RPCs; the names are the port's, `kata_shimd.pod.ports.Agent`."""

    def __init__(self, sock: socket.socket | None, deadlines: Deadlines) -> None:
        """Without a ``sock`` calls wait until it is attached."""
        loop = asyncio.get_running_loop()
        self._gone: asyncio.Future[str] = loop.create_future()
        self._attached: asyncio.Future[Client] = loop.create_future()
        self._deadlines = deadlines
        if sock is not None:
            self.attach(sock)

    def attach(self, sock: socket.socket) -> None:
        """The channel, of which nothing has been read yet."""
        self._attached.set_result(self._connect(sock))

    def _connect(self, sock: socket.socket) -> Client:
        return Client(sock, on_lost=self._lost)

    def fail(self, error: ShimError) -> None:
        """There will be no channel, or it is of no use: calls fail with Unavailable."""
        if self._attached.done():
            self.close()
            return
        self._attached.set_exception(Unavailable("reach agent", "", str(error)))
        self._attached.exception()  # it may never be asked for

    def _lost(self, error: ShimError) -> None:
        if not self._gone.done():
            self._gone.set_result(str(error))

    async def gone(self) -> str:
        return await asyncio.shield(self._gone)

    def close(self) -> None:
        if self._attached.done() and self._attached.exception() is None:
            self._attached.result().close()

    def is_again(self) -> bool:
        """Not of a channel that ends with the daemon."""
        return False

    async def check(self) -> None:
        await self._call(health.CHECK, pb.CheckRequest(), self._deadlines.check)

    async def details(self) -> pb.GuestDetailsResponse:
        """What the guest is: agent's version, memory block size, drivers."""
        request = pb.GuestDetailsRequest(mem_block_size=True, mem_hotplug_probe=True)
        return await self._call(rpcs.GET_GUEST_DETAILS, request, self._deadlines.usual)

    async def features(self) -> frozenset[str]:
        """What the agent can do beyond Kata's protocol."""
        found = (await self.details()).agent_details
        return frozenset(found.extra_features if found is not None else ())

    async def prepare(self) -> None:
        """Make the guest ready to be copied; no agent but ours can."""
        await self._do(guest.PREPARE, own.PrepareRequest())

    async def become_another(self, seed: bytes) -> None:
        """Give a guest that was copied randomness of its own, and the time, which is told last, to an agent that is awake, and
        again while it was on its way too long.
        """
        await self._do(rpcs.RESEED_RANDOM_DEV, pb.ReseedRandomDevRequest(data=seed))
        for _ in range(TELLS):
            begun = time.monotonic()
            seconds, rest = divmod(time.time_ns(), 1_000_000_000)
            await self._do(rpcs.SET_GUEST_DATE_TIME, pb.SetGuestDateTimeRequest(sec=seconds, usec=rest // 1000))
            if time.monotonic() - begun <= PRECISE:
                return

    async def create_sandbox(self, sandbox: Sandbox) -> None:
        request = pb.CreateSandboxRequest(
            hostname=sandbox.hostname[:64],
            dns=list(sandbox.dns),
            storages=[_storage(item) for item in sandbox.storages],
            sandbox_id=sandbox.sandbox_id,
            kernel_modules=[_module(line) for line in sandbox.kernel_modules],
        )
        await self._call(rpcs.CREATE_SANDBOX, request, self._deadlines.create_sandbox)

    async def destroy_sandbox(self) -> None:
        await self._do(rpcs.DESTROY_SANDBOX, pb.DestroySandboxRequest())

    async def create_container(
        self, container_id: str, spec: Mapping[str, Any], storages: Sequence[GuestStorage], *, sandbox_pidns: bool
    ) -> None:
        request = pb.CreateContainerRequest(
            container_id=container_id,
            exec_id=container_id,
            storages=[_storage(item) for item in storages],
            oci=oci.spec(spec),
            sandbox_pidns=sandbox_pidns,
        )
        await self._call(rpcs.CREATE_CONTAINER, request, self._deadlines.create_container, container_id)

    async def start_container(self, container_id: str) -> None:
        await self._do(rpcs.START_CONTAINER, pb.StartContainerRequest(container_id=container_id), container_id)

    async def remove_container(self, container_id: str) -> None:
        await self._do(rpcs.REMOVE_CONTAINER, pb.RemoveContainerRequest(container_id=container_id), container_id)

    async def exec_process(self, container_id: str, exec_id: str, process: Mapping[str, Any]) -> None:
        request = pb.ExecProcessRequest(container_id=container_id, exec_id=exec_id, process=oci.process(process))
        await self._do(rpcs.EXEC_PROCESS, request, f"{container_id}/{exec_id}")

    async def signal_process(self, container_id: str, exec_id: str, signal: int) -> None:
        request = pb.SignalProcessRequest(container_id=container_id, exec_id=exec_id, signal=signal)
        await self._do(rpcs.SIGNAL_PROCESS, request, container_id)

    async def wait_process(self, container_id: str, exec_id: str, *, within: float | None = None) -> Ended:
        request = pb.WaitProcessRequest(container_id=container_id, exec_id=exec_id or container_id)
        response, reply = await self._ask(rpcs.WAIT_PROCESS, request, within, container_id)
        ended = Ended(response.status)
        if not 0 <= ended <= MAX_STATUS:
            raise AgentRefused("WaitProcess", container_id, Code.DATA_LOSS, f"it says exit status {ended}")
        ended.at = time.time_ns() - response.ago if response.ago else 0
        ended.earlier = getattr(reply, "earlier", False)
        return ended

    async def read_stdout(self, container_id: str, exec_id: str, length: int) -> bytes:
        request = pb.ReadStreamRequest(container_id=container_id, exec_id=exec_id or container_id, len=length)
        return await self._read(rpcs.READ_STDOUT, request, length)

    async def read_stderr(self, container_id: str, exec_id: str, length: int) -> bytes:
        request = pb.ReadStreamRequest(container_id=container_id, exec_id=exec_id or container_id, len=length)
        return await self._read(rpcs.READ_STDERR, request, length)

    async def _read(
        self,
        rpc: MethodDescriptor[pb.ReadStreamRequest, pb.ReadStreamResponse],
        request: pb.ReadStreamRequest,
        length: int,
    ) -> Chunk:
        response, reply = await self._ask(rpc, request, None, request.container_id)
        chunk = Chunk(response.data[:length])
        chunk.call = _call_of(reply)
        return chunk

    async def write_stdin(self, container_id: str, exec_id: str, data: bytes) -> int:
        part = data[:MAX_WRITE]
        request = pb.WriteStreamRequest(container_id=container_id, exec_id=exec_id or container_id, data=part)
        response, reply = await self._ask(rpcs.WRITE_STDIN, request, None, container_id)
        taken = Taken(response.len)
        taken.call = _call_of(reply)
        if not 0 < taken <= len(part):
            raise AgentRefused(
                "WriteStdin", container_id, Code.DATA_LOSS, f"it says it took {taken} of {len(part)} bytes"
            )
        return taken

    async def close_stdin(self, container_id: str, exec_id: str) -> None:
        request = pb.CloseStdinRequest(container_id=container_id, exec_id=exec_id or container_id)
        await self._do(rpcs.CLOSE_STDIN, request, container_id)

    async def resize(self, container_id: str, exec_id: str, *, rows: int, columns: int) -> None:
        request = pb.TtyWinResizeRequest(
            container_id=container_id, exec_id=exec_id or container_id, row=rows, column=columns
        )
        await self._do(rpcs.TTY_WIN_RESIZE, request, container_id)

    async def pause_container(self, container_id: str) -> None:
        await self._do(rpcs.PAUSE_CONTAINER, pb.PauseContainerRequest(container_id=container_id), container_id)

    async def resume_container(self, container_id: str) -> None:
        await self._do(rpcs.RESUME_CONTAINER, pb.ResumeContainerRequest(container_id=container_id), container_id)

    async def update_container(self, container_id: str, resources: Mapping[str, Any]) -> None:
        request = pb.UpdateContainerRequest(container_id=container_id, resources=oci.resources(resources))
        await self._do(rpcs.UPDATE_CONTAINER, request, container_id)

    async def stats_container(self, container_id: str) -> pb.StatsContainerResponse:
        request = pb.StatsContainerRequest(container_id=container_id)
        return await self._call(rpcs.STATS_CONTAINER, request, self._deadlines.usual, container_id)

    async def update_interface(self, interface: Interface) -> None:
        await self._call(rpcs.UPDATE_INTERFACE, network.interface(interface), self._deadlines.usual, interface.name)

    async def update_routes(self, routes: tuple[Route, ...]) -> None:
        await self._call(rpcs.UPDATE_ROUTES, network.routes(routes), self._deadlines.usual)

    async def add_neighbours(self, neighbours: tuple[Neighbour, ...]) -> None:
        await self._do(rpcs.ADD_ARP_NEIGHBORS, network.neighbours(neighbours))

    async def oom_event(self) -> str:
        response, reply = await self._ask(rpcs.GET_OOM_EVENT, pb.GetOomEventRequest(), None, "")
        told = Told(response.container_id)
        told.call = _call_of(reply)
        return told

    async def _do(self, rpc: MethodDescriptor[RequestT, wkt.Empty], request: RequestT, obj: str = "") -> None:
        await self._call(rpc, request, self._deadlines.usual, obj)

    async def _call(
        self, rpc: MethodDescriptor[RequestT, ResponseT], request: RequestT, timeout: float | None, obj: str = ""
    ) -> ResponseT:
        return (await self._ask(rpc, request, timeout, obj))[0]

    async def _ask(
        self, rpc: MethodDescriptor[RequestT, ResponseT], request: RequestT, timeout: float | None, obj: str
    ) -> tuple[ResponseT, bytes]:
        """The reply, and what it was on the wire: a `Reply` of a channel that outlives the daemon knows more of itself."""
        try:
            client = await asyncio.shield(self._attached)
            reply = await client.call(rpc.service, rpc.name, wire.encode(request), timeout=timeout)
        except RpcError as error:
            raise AgentRefused(rpc.name, obj, error.code, _printable(error.message)) from error
        except DeadlineExceeded as error:
            raise DeadlineExceeded(f"agent {rpc.name}", obj, f"no answer within {timeout:g} s") from error
        except Unavailable as error:
            raise Unavailable(f"agent {rpc.name}", obj, "the channel to the guest is lost") from error
        try:
            return wire.decode(rpc.response, reply), reply
        except InvalidArgument as error:
            raise AgentRefused(rpc.name, obj, Code.DATA_LOSS, f"its reply is malformed: {error.cause}") from error


def _call_of(reply: bytes) -> int:
    """The number of the call that brought it, if somebody counts."""
    return getattr(reply, "call", 0)


def _printable(text: str) -> str:
    return "".join(ch if ch.isprintable() else " " for ch in text[:MAX_TEXT])


def _storage(item: GuestStorage) -> pb.Storage:
    return pb.Storage(
        driver=item.driver,
        driver_options=list(item.driver_options),
        source=item.source,
        fstype=item.fstype,
        options=list(item.options),
        mount_point=item.mount_point,
    )


def _module(line: str) -> pb.KernelModule:
    """``name parameter...`` (`kata.md` §3.3)."""
    name, *parameters = line.split()
    return pb.KernelModule(name=name, parameters=parameters)
