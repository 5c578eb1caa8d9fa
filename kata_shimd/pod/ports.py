"""What the domain needs from the south. The edges implement these; the daemon joins them.

Every call to `Agent` has a deadline of its own, except those that wait for the container by nature. A call fails with
AgentRefused (the guest said no, with its code, or nonsense), Unavailable (the channel or the VM is gone) or DeadlineExceeded, and
with nothing else; but InvalidArgument and ResourceExhausted when our own request cannot be said.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from kata_shimd.pod.events import Event
from kata_shimd.pod.storage import RootfsShare, Share
from kata_shimd.pod.values import Ended, GuestStorage, Sandbox, Stdio, VmExit


class Agent(Protocol):
    """The agent in the guest. An empty ``exec_id`` is the container's init."""

    def is_again(self) -> bool:
        """Whether the request that is being carried out was begun by an earlier daemon, which died over it."""
        ...

    async def check(self) -> None:
        """Ask whether it lives."""
        ...

    async def gone(self) -> str:
        """Wait until the channel to it is lost, and say why."""
        ...

    async def features(self) -> frozenset[str]:
        """What the agent can do beyond Kata's protocol."""
        ...

    async def create_sandbox(self, sandbox: Sandbox) -> None: ...

    async def destroy_sandbox(self) -> None: ...

    async def create_container(
        self, container_id: str, spec: Mapping[str, Any], storages: Sequence[GuestStorage], *, sandbox_pidns: bool
    ) -> None: ...

    async def start_container(self, container_id: str) -> None: ...

    async def remove_container(self, container_id: str) -> None: ...

    async def exec_process(self, container_id: str, exec_id: str, process: Mapping[str, Any]) -> None: ...

    async def signal_process(self, container_id: str, exec_id: str, signal: int) -> None: ...

    async def wait_process(self, container_id: str, exec_id: str) -> Ended:
        """No deadline. 0-255, whatever the guest said; the time is what it said, and may be any."""
        ...

    async def read_stdout(self, container_id: str, exec_id: str, length: int) -> bytes:
        """No deadline. At most ``length`` bytes as soon as there is one; empty at the end."""
        ...

    async def read_stderr(self, container_id: str, exec_id: str, length: int) -> bytes: ...

    async def write_stdin(self, container_id: str, exec_id: str, data: bytes) -> int:
        """No deadline. How many of ``data`` were taken, at least one."""
        ...

    async def close_stdin(self, container_id: str, exec_id: str) -> None: ...

    async def resize(self, container_id: str, exec_id: str, *, rows: int, columns: int) -> None: ...

    async def pause_container(self, container_id: str) -> None: ...

    async def resume_container(self, container_id: str) -> None: ...

    async def update_container(self, container_id: str, resources: Mapping[str, Any]) -> None: ...

    async def stats_container(self, container_id: str) -> Any:
        """The agent's StatsContainerResponse; the domain passes it through to the north edge unread."""
        ...

    async def oom_event(self) -> str:
        """No deadline. Wait for the next container in which the kernel killed for memory."""
        ...


class Vm(Protocol):
    """The running virtual machine."""

    @property
    def pid(self) -> int:
        """QEMU's pid: what containerd sees as the pid of every task."""
        ...

    async def wait(self) -> VmExit:
        """Wait until the VM has ended, for whatever reason."""
        ...

    async def stop(self) -> None:
        """Ask QEMU to quit, within a budget; what remains is the ledger's to end."""
        ...

    def kill(self) -> None:
        """End it now; `wait` returns soon after."""
        ...


class Vmm(Protocol):
    """Makes the VM and the channel to its agent."""

    async def boot(self) -> tuple[Vm, Agent]:
        """:raises VmFailed: with step, object, cause and hint"""
        ...


class Host(Protocol):
    """What the pod puts on the host for its containers. Each call records in the ledger before it acts."""

    def directory(self, container_id: str) -> str:
        """The name that its directory below the shared one has, or will have: no other creation's, not even of the same id."""
        ...

    async def share_rootfs(self, container_id: str, rootfs: RootfsShare) -> None: ...

    async def share(self, container_id: str, share: Share) -> None: ...

    async def undo_container(self, container_id: str) -> None:
        """Undo everything recorded for a container.

        :raises HostFailed: something would not go; it says what
        """
        ...


class Source(Protocol):
    """A process's stdin on the host."""

    async def read(self) -> bytes:
        """Some bytes, or empty when every writer has gone and the client has closed it."""
        ...

    def took(self, count: int) -> None:
        """The process has taken ``count`` bytes of what was read."""
        ...

    def end(self) -> None:
        """The client sends no more: `read` returns what is there and then empty."""
        ...

    def close(self) -> None: ...


class Sink(Protocol):
    """A process's stdout or stderr on the host."""

    async def write(self, data: bytes) -> None:
        """Write all of it, however long the reader takes. :raises OSError: nobody can ever read it"""
        ...

    def close(self) -> None: ...


@runtime_checkable
class KeepingSink(Sink, Protocol):
    """A sink that has memory of its own, which outlives the daemon."""

    def keep(self, data: bytes) -> None:
        """Take all of it at once. :raises HostFailed: the host has no memory left"""
        ...

    @property
    def waiting(self) -> int:
        """Bytes that were kept and not handed on yet."""
        ...

    async def hand_on(self) -> int:
        """Hand some of it on, however long the reader takes; how much. :raises OSError: nobody can ever read it"""
        ...

    def drop(self) -> None:
        """What waits is not wanted any more."""
        ...


class Streams(Protocol):
    """Opens a process's standard streams; an empty path gives None, and an empty ``exec_id`` is the container's init.

    :raises InvalidArgument: the path or URI is of no known kind
    """

    def open_source(self, container_id: str, exec_id: str, uri: str) -> Source | None: ...

    async def open_sinks(
        self, container_id: str, exec_id: str, stdout: str, stderr: str
    ) -> tuple[Sink | None, Sink | None]: ...

    async def take_up(
        self, container_id: str, exec_id: str, stdio: Stdio
    ) -> tuple[Source | None, Sink | None, Sink | None]:
        """What an earlier daemon had open of a process that has begun. Never fails: a stream that cannot be had is None."""
        ...

    async def settle(self, container_id: str) -> None:
        """Every sink of the container is closed: let what reads them come to its end, for a while. Never fails."""
        ...

    def has_left(self, container_id: str, exec_id: str, stdio: Stdio) -> bool:
        """Whether an earlier daemon left output there that has not been handed on."""
        ...


class Publisher(Protocol):
    """One ordered queue of events; never blocks and never fails."""

    def publish(self, event: Event) -> None: ...


@dataclass(frozen=True, slots=True)
class South:
    """The ports of the pod, joined by the daemon."""

    vmm: Vmm
    host: Host
    streams: Streams
    publisher: Publisher
