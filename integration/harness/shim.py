"""A shim's socket, spoken to directly: what no client of containerd's offers, and the bare answers with their codes."""

import asyncio
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from integration.harness.ctr import Ctr
from integration.harness.image import IMAGE_PATH
from integration.harness.pods import pod_hash
from integration.harness.scale import SCALE
from kata_shimd import wire
from kata_shimd.api import wkt
from kata_shimd.api.services import task_v2, task_v3
from kata_shimd.errors import Code
from kata_shimd.ttrpc import Client, RpcError

#: The Task service's two names.
NAMES: Final = (task_v2.SERVICE.name, task_v3.SERVICE.name)
_RPCS: Final = {rpc.name: rpc for rpc in task_v2.SERVICE}

PROCESS: Final = "types.containerd.io/opencontainers/runtime-spec/1/Process"
RESOURCES: Final = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"


@dataclass(frozen=True, slots=True)
class ShimSocket:
    """The Task service on one socket, under one of its names. Every call has a connection of its own."""

    path: Path
    service: str = NAMES[0]

    @classmethod
    def of(cls, ctr: Ctr, sandbox_id: str) -> "ShimSocket":
        """The socket of our shim for this pod."""
        name = pod_hash(str(ctr.containerd.address), ctr.namespace, sandbox_id)
        return cls(ctr.containerd.host.run_dir / "pods" / name / "shim.sock")

    def call(self, rpc: str, *, within: float = 60.0 * SCALE, **fields: Any) -> Any:
        """One RPC; its reply.

        :raises RpcError: the shim's answer, with its code
        """
        return asyncio.run(self._call(rpc, within, fields))

    def code(self, rpc: str, **fields: Any) -> Code:
        """The status of an RPC."""
        try:
            self.call(rpc, **fields)
        except RpcError as error:
            return error.code
        return Code.OK

    async def _call(self, rpc: str, within: float, fields: dict[str, Any]) -> Any:
        method = _RPCS[rpc]
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(str(self.path))
        async with Client(sock) as client:
            request = wire.encode(method.request(**fields))
            return wire.decode(method.response, await client.call(self.service, rpc, request, timeout=within))


def json_any(url: str, value: object) -> wkt.Any:
    return wkt.Any(type_url=url, value=json.dumps(value).encode())


def process(*argv: str, **fields: Any) -> Mapping[str, Any]:
    """An OCI process with no capability and no limit unless ``fields`` say so."""
    return {"user": {"uid": 0, "gid": 0}, "args": list(argv), "env": [IMAGE_PATH], "cwd": "/", **fields}
