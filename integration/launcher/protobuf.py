"""The few messages of the launcher, encoded and decoded by google's own library from descriptors written here."""

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message

F = descriptor_pb2.FieldDescriptorProto
_TYPES = {
    "string": F.TYPE_STRING,
    "int32": F.TYPE_INT32,
    "int64": F.TYPE_INT64,
    "uint32": F.TYPE_UINT32,
    "bytes": F.TYPE_BYTES,
}


def _message(file: descriptor_pb2.FileDescriptorProto, name: str, /, **fields: tuple[int, str]) -> None:
    message = file.message_type.add(name=name)
    for field, (number, kind) in fields.items():
        added = message.field.add(name=field, number=number, label=F.LABEL_OPTIONAL)
        if kind in _TYPES:
            added.type = _TYPES[kind]
        else:
            added.type, added.type_name = F.TYPE_MESSAGE, f".t.{kind}"


def _pool() -> descriptor_pool.DescriptorPool:
    file = descriptor_pb2.FileDescriptorProto(name="launcher.proto", package="t", syntax="proto3")
    _message(file, "BootstrapParams", instance_id=(1, "string"), namespace=(2, "string"), log_level=(3, "int32"))
    _message(file, "BootstrapResult", version=(1, "int32"), address=(2, "string"), protocol=(3, "string"))
    _message(file, "Timestamp", seconds=(1, "int64"), nanos=(2, "int32"))
    _message(file, "DeleteResponse", pid=(1, "uint32"), exit_status=(2, "uint32"), exited_at=(3, "Timestamp"))
    _message(file, "Any", type_url=(1, "string"), value=(2, "bytes"))
    _message(file, "Version", version=(1, "string"), revision=(2, "string"))
    _message(file, "RuntimeInfo", name=(1, "string"), version=(2, "Version"))
    _message(
        file, "Request", service=(1, "string"), method=(2, "string"), payload=(3, "bytes"), timeout_nano=(4, "int64")
    )
    _message(file, "AbandonRequest", id=(1, "string"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return pool


_POOL = _pool()


def make(name: str, **fields: Any) -> Message:
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"t.{name}"))(**fields)


def parse(name: str, data: bytes) -> Any:
    """Decode; a field the message does not have is an error, for nobody should have sent it."""
    message: Any = make(name)
    message.ParseFromString(data)
    assert message.SerializeToString(deterministic=True) == data, f"{name}: not what was sent: {data!r}"
    return message
