"""How the agent of one VM is reached, over whichever transport it has."""

import socket
from dataclasses import dataclass
from pathlib import Path

from kata_shimd.vm import dial, vsock
from kata_shimd.vm.spec import Budgets


@dataclass(frozen=True, slots=True)
class Channel:
    """``cid`` is set for vsock; else the agent is behind the socket ``path`` and knows ``secret``."""

    path: Path
    secret: bytes
    cid: int | None = None

    def __str__(self) -> str:
        return str(self.path) if self.cid is None else f"vsock {self.cid}:{vsock.AGENT_PORT}"

    async def dial(self, budgets: Budgets) -> socket.socket:
        """A connected non-blocking socket whose next byte is the agent's.

        :raises DeadlineExceeded, VmFailed, HostFailed: see `vsock.dial`, `dial.dial`
        """
        if self.cid is not None:
            return await vsock.dial(self.cid, timeout=budgets.dial)
        return await dial.dial(self.path, self.secret, interval=budgets.hello_interval, timeout=budgets.dial)
