"""The service that every peer serves and calls, on our side: google.protobuf.BytesValue in, the same out."""

import asyncio

from google.protobuf.wrappers_pb2 import BytesValue

from kata_shimd.errors import Code, FailedPrecondition, ShimError
from kata_shimd.ttrpc import Call, Method, RpcError, ServerStream, Service, Status
from kata_shimd.ttrpc.frames import MAX_DATA

NAME = "interop.v1.Interop"

Stream = ServerStream[bytes, bytes]


def encode(value: bytes) -> bytes:
    return BytesValue(value=value).SerializeToString()


def decode(data: bytes) -> bytes:
    return BytesValue.FromString(data).value


def echo(_call: Call, value: bytes) -> bytes:
    return value


async def fail(_call: Call, value: bytes) -> bytes:
    raise FailedPrecondition("refused " + value.decode())


async def metadata(call: Call, key: bytes) -> bytes:
    return f"[{' '.join(call.metadata.get(key.decode(), ()))}]".encode()


async def deadline(call: Call, _value: bytes) -> bytes:
    left = call.remaining()
    return b"none" if left is None else str(round(left)).encode()


async def hang(_call: Call, _value: bytes) -> bytes:
    return await asyncio.get_running_loop().create_future()


async def huge(_call: Call, _value: bytes) -> bytes:
    return bytes(MAX_DATA + 1)


async def sum_up(_call: Call, stream: Stream) -> bytes:
    return str(sum([len(value) async for value in stream])).encode()


async def count(_call: Call, stream: Stream) -> None:
    for number in range(len(await stream.receive() or b"")):
        await stream.send(str(number).encode())


async def chat(_call: Call, stream: Stream) -> None:
    async for value in stream:
        await stream.send(value.upper())


async def break_off(_call: Call, stream: Stream) -> None:
    await stream.receive()
    await stream.send(b"one")
    raise RpcError("Break", Status(Code.ABORTED, "broke off"))


def _method(handler: object, **kind: bool) -> Method[bytes, bytes]:
    return Method(handler=handler, decode=decode, encode=encode, **kind)  # type: ignore[arg-type]


INTEROP = Service(
    NAME,
    {
        "Echo": _method(echo, immediate=True),
        "Fail": _method(fail),
        "Metadata": _method(metadata),
        "Deadline": _method(deadline),
        "Hang": _method(hang),
        "Huge": _method(huge),
        "Sum": _method(sum_up, client_streaming=True),
        "Count": _method(count, server_streaming=True),
        "Chat": _method(chat, client_streaming=True, server_streaming=True),
        "Break": _method(break_off, server_streaming=True),
    },
)

__all__ = ["INTEROP", "NAME", "ShimError", "decode", "encode"]
