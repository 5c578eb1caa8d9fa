"""Speaks to a pod's daemon directly, past containerd: what it answers, and how soon."""

import asyncio
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from integration.harness.scale import SCALE
from kata_shimd import wire
from kata_shimd.api import task
from kata_shimd.api.services import task_v2
from kata_shimd.ttrpc import Client, RpcError

#: State is answered from memory, so this holds whatever runs the guest (`integration.chaos`); it is no scaled deadline.
STATE_SECONDS: Final = 2.0
#: Seconds, before scaling, that a call may take with the deadlines of `stage.TIMEOUTS`: what it waits for, added up. Holds are
#: in it, for a play does not hold one longer than it takes to kill something.
DEADLINES: Final[Mapping[str, float]] = {"Create": 60, "Start": 45, "Delete": 45, "Kill": 15}
ANY: Final = 30.0
REPLIES: Final = {rpc.name: rpc.response for rpc in task_v2.SERVICE}


class Shim:
    """One pod's socket; a connection for each call, so a test may ask whenever it likes."""

    def __init__(self, pod_dir: Path) -> None:
        self._socket = pod_dir / "shim.sock"

    def state(self, container_id: str, exec_id: str = "") -> task.StateResponse:
        """:raises AssertionError: it took longer than State may
        :raises RpcError: with the daemon's code
        """
        begin = time.monotonic()
        answer: task.StateResponse = self._call(
            "State", task.StateRequest(id=container_id, exec_id=exec_id), within=2 * STATE_SECONDS
        )
        took = time.monotonic() - begin
        assert took <= STATE_SECONDS, f"State took {took:.2f} s"
        return answer

    def wait(self, container_id: str, *, within: float = 60 * SCALE) -> int:
        """The exit status of a container's init."""
        answer: task.WaitResponse = self._call("Wait", task.WaitRequest(id=container_id), within=within)
        return answer.exit_status

    def kill(self, container_id: str, *, within: float = 30 * SCALE) -> None:
        self._call("Kill", task.KillRequest(id=container_id, signal=9, all=True), within=within)

    def code(self, rpc: str, request: Any, *, within: float) -> int:
        """The code that a call is refused with; 0 when it is not."""
        try:
            self._call(rpc, request, within=within)
        except RpcError as error:
            return int(error.code)
        return 0

    def _call(self, rpc: str, request: Any, *, within: float) -> Any:
        raw = asyncio.run(self._ask(rpc, wire.encode(request), within))
        return wire.decode(REPLIES[rpc], raw)

    async def _ask(self, rpc: str, request: bytes, within: float) -> bytes:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, str(self._socket))
        except OSError:
            sock.close()
            raise
        async with Client(sock) as client:
            return await client.call(task_v2.SERVICE.name, rpc, request, timeout=within)


def overdue(journal: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """The calls in a pod's journal, but for Wait, that took longer than they may, or never ended though the daemon did."""
    entries = [*journal]
    if any(entry["event"] == "daemon-ended" for entry in entries):
        left = {entry["call"] for entry in entries if entry["event"] == "rpc"}
        for entry in entries:
            if entry["event"] == "rpc-began" and entry["call"] not in left:
                yield f"{entry['rpc']} was begun and never left"
    for entry in entries:
        if entry["event"] == "rpc" and entry["rpc"] != "Wait":
            most = DEADLINES.get(str(entry["rpc"]), ANY) * SCALE
            if float(entry["ms"]) > most * 1000:
                yield f"{entry['rpc']} took {float(entry['ms']) / 1000:.1f} s, more than {most:.0f}"
