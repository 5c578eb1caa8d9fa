"""ttrpc, containerd's and Kata's RPC protocol: a pure core and asyncio ends around it.

`frames`, `envelope`, `events` and `protocol` know bytes only; `channel`, `connection`, `server` and `client` move
them. May import the standard library and `kata_shimd.errors`. What must never happen: a generated message class in here,
or a peer, whatever it sends, costing anyone else anything. The rules of the wire are in docs/ttrpc.md.
"""

from .channel import Limits
from .client import Client, ClientStream
from .envelope import Detail, Metadata, Status
from .server import Peer, Server
from .service import Boundary, Call, DefaultBoundary, Method, RpcError, ServerStream, Service

__all__ = [
    "Boundary",
    "Call",
    "Client",
    "ClientStream",
    "DefaultBoundary",
    "Detail",
    "Limits",
    "Metadata",
    "Method",
    "Peer",
    "RpcError",
    "Server",
    "ServerStream",
    "Service",
    "Status",
]
