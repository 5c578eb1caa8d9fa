"""Messages of `kata_shimd.api` to bytes and back.

Owns the only way in and out of those classes, and what an Any and a Timestamp mean. Nobody vouches for the bytes: they
may come from the guest. betterproto2 gives the classes and encodes them, but its decoder takes a truncated field, a
field of another wire type, a group or half a map entry for valid, replaces a sub-message that should be merged, and
copies unknown fields in quadratic time. So decoding is here, one pass over tables made from the classes; and encoding
checks first, since betterproto2 writes a number that does not fit as some other number.

Must never happen: `decode` raising anything but InvalidArgument, or working longer than its two limits allow.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar, cast, get_args, get_type_hints

from kata_shimd.api import wkt
from kata_shimd.api._generated.message_pool import default_message_pool
from kata_shimd.errors import InvalidArgument

if TYPE_CHECKING:
    from betterproto2 import FieldMetadata, Message

MAX_BYTES = 4 << 20
"""The largest message there is: ttrpc carries no more in one frame."""

MAX_VALUES = 1 << 16
"""How many values a message may hold in all. 4 MiB can be two million empty sub-messages, and each costs an object."""

NANOSECONDS = 1_000_000_000

MessageT = TypeVar("MessageT", bound="Message")
Buffer = bytes | bytearray | memoryview
Values = dict[str, Any]

_VARINT, _FIXED64, _DELIMITED, _FIXED32 = 0, 1, 2, 5


class _Malformed(ValueError):
    """Bytes that are no message of that class; the text becomes the cause."""


# ---------------------------------------------------------------------------------------------------------- tables


def _signed(bits: int) -> Callable[[int], int]:
    """Reads the low bits of a varint as two's complement."""
    sign, mask = 1 << (bits - 1), (1 << bits) - 1
    return lambda number: ((number & mask) ^ sign) - sign


def _double(data: bytes) -> float:
    return cast(float, struct.unpack("<d", data)[0])


@dataclass(frozen=True, slots=True)
class _Kind:
    """A scalar type: its wire type, how to read it, what absence means, its Python types, and a number's range."""

    wire: int
    read: Callable[[Any], Any]
    zero: Any
    python: tuple[type, ...] = (int,)
    low: int = 0
    high: int = 0


def _integer(read: Callable[[int], int], low: int, high: int) -> _Kind:
    return _Kind(_VARINT, read, 0, low=low, high=high)


_KINDS = {
    "bool": _Kind(_VARINT, bool, False, high=1),
    "int32": _integer(_signed(32), -(1 << 31), (1 << 31) - 1),
    "int64": _integer(_signed(64), -(1 << 63), (1 << 63) - 1),
    "uint32": _integer(lambda number: number & 0xFFFFFFFF, 0, (1 << 32) - 1),
    "uint64": _integer(int, 0, (1 << 64) - 1),
    "enum": _integer(_signed(32), -(1 << 31), (1 << 31) - 1),
    "double": _Kind(_FIXED64, _double, 0.0, (float, int)),
    "string": _Kind(_DELIMITED, lambda data: str(data, "utf-8"), "", (str,)),
    "bytes": _Kind(_DELIMITED, bytes, b"", (bytes, bytearray, memoryview)),
}


@dataclass(frozen=True, slots=True)
class _Field:
    """One field of a class. Exactly one of `kind`, `message` and `entry` is set."""

    name: str
    number: int
    repeated: bool = False
    kind: _Kind | None = None
    enum: Callable[[int], Any] | None = None
    message: type[Message] | None = None
    entry: tuple[_Field, _Field] | None = None

    @property
    def wire(self) -> int:
        return self.kind.wire if self.kind else _DELIMITED

    def value(self, raw: int | bytes) -> Any:
        """A scalar from what stands on the wire. Raises ValueError for text that is not UTF-8."""
        assert self.kind
        value = self.kind.read(raw)
        return self.enum(value) if self.enum else value


@dataclass(frozen=True, slots=True)
class _Table:
    """The fields of a class."""

    cls: type[Message]
    by_number: dict[int, _Field]
    single_messages: tuple[_Field, ...]


def _field(name: str, number: int, proto_type: str, hint: Any, repeated: bool = False) -> _Field:
    """A field that is no map; `hint` is what its annotation is about: the message's or the enum's class."""
    if proto_type == "message":
        return _Field(name, number, repeated, message=hint)
    return _Field(name, number, repeated, kind=_KINDS[proto_type], enum=hint if proto_type == "enum" else None)


def _map_field(name: str, meta: FieldMetadata, hints: tuple[Any, ...]) -> _Field:
    assert meta.map_meta
    key, value = (
        _field(part, number, half.proto_type, hint)
        for number, (part, half, hint) in enumerate(zip(("key", "value"), meta.map_meta, hints, strict=True), 1)
    )
    return _Field(name, meta.number, entry=(key, value))


@cache
def _table(cls: type[Message]) -> _Table:
    """The table of a class, made once, when it is first used: resolving the annotations takes a while.

    The members of a oneof are not told about each other: no oneof of ours has more than one.
    """
    hints = get_type_hints(cls, vars(sys.modules[cls.__module__]))
    table: dict[int, _Field] = {}
    for name, meta in ((f.name, f.metadata["betterproto"]) for f in fields(cast(Any, cls))):
        arguments = get_args(hints[name])
        if meta.proto_type == "map":
            table[meta.number] = _map_field(name, meta, arguments)
        else:
            hint = arguments[0] if arguments else hints[name]
            table[meta.number] = _field(name, meta.number, meta.proto_type, hint, bool(meta.repeated))
    singles = tuple(f for f in table.values() if f.message and not f.repeated)
    return _Table(cls, table, singles)


def prepare(cls: type[Message]) -> None:
    """Make the tables of a class and of every class inside it now, and what its encoder makes at its first use."""
    _prepare(cls, set())


def _prepare(cls: type[Message], done: set[type[Message]]) -> None:
    if cls in done:
        return
    done.add(cls)
    bytes(cls())
    for part in _table(cls).by_number.values():
        for inner in part.entry or (part,):
            if inner.message is not None:
                _prepare(inner.message, done)


# ---------------------------------------------------------------------------------------------------------- decode


class _Decoder:
    """One pass over one buffer. `left` is how many more values it may hold."""

    __slots__ = ("data", "left")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.left = MAX_VALUES

    def varint(self, at: int, end: int) -> tuple[int, int]:
        """(number, position after it); at most ten bytes and 64 bits."""
        number = shift = 0
        while at < end and shift < 70:
            byte = self.data[at]
            at += 1
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                if number >> 64:
                    break
                return number, at
            shift += 7
        raise _Malformed("a number is cut off or longer than 64 bits")

    def extent(self, wire: int, at: int, end: int) -> tuple[int, int]:
        """(first, last + 1) of the bytes of a value that is no varint."""
        if wire == _DELIMITED:
            length, at = self.varint(at, end)
        elif wire == _FIXED64:
            length = 8
        elif wire == _FIXED32:
            length = 4
        else:
            raise _Malformed(f"wire type {wire} is not one of proto3's")
        if length > end - at:
            raise _Malformed("a field reaches beyond the end")
        return at, at + length

    def spend(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise _Malformed(f"more than {MAX_VALUES} values")

    def fill(self, by_number: Mapping[int, _Field], values: Values, at: int, end: int) -> Values:
        """Read the fields between two positions into `values`; a field of unknown number is checked and dropped."""
        while at < end:
            self.spend()
            tag, at = self.varint(at, end)
            number, wire = tag >> 3, tag & 7
            if not 0 < number < 1 << 29:
                raise _Malformed(f"field number {number}")
            found = by_number.get(number)
            if wire == _VARINT:
                raw, at = self.varint(at, end)
                if found:
                    self.scalar(found, wire, raw, values)
            else:
                start, at = self.extent(wire, at, end)
                if found:
                    self.delimited(found, wire, start, at, values)
        return values

    def scalar(self, found: _Field, wire: int, raw: int | bytes, values: Values) -> None:
        if wire != found.wire:
            raise _Malformed(f"field {found.number} has wire type {wire}, not {found.wire}")
        if found.repeated:
            values.setdefault(found.name, []).append(found.value(raw))
            return
        values[found.name] = found.value(raw)

    def delimited(self, found: _Field, wire: int, at: int, end: int, values: Values) -> None:
        if wire == _DELIMITED and found.message:
            self.message(found, found.message, at, end, values)
        elif wire == _DELIMITED and found.entry:
            self.entry(found, found.entry, at, end, values)
        elif wire == _DELIMITED and found.repeated and found.wire != _DELIMITED:
            self.packed(found, at, end, values)
        else:
            self.scalar(found, wire, self.data[at:end], values)

    def message(self, found: _Field, cls: type[Message], at: int, end: int, values: Values) -> None:
        """A sub-message. One that comes twice is merged, so it stays a dictionary until all is read."""
        table = _table(cls)
        if found.repeated:
            values.setdefault(found.name, []).append(_build(table, self.fill(table.by_number, {}, at, end)))
        else:
            self.fill(table.by_number, values.setdefault(found.name, {}), at, end)

    def entry(self, found: _Field, halves: tuple[_Field, _Field], at: int, end: int, values: Values) -> None:
        """A pair of a map; either half may be absent, which makes it the type's zero."""
        key, value = halves
        pair = self.fill({1: key, 2: value}, {}, at, end)
        if value.message:
            content = _build(_table(value.message), pair.get("value", {}))
        else:
            content = pair["value"] if "value" in pair else _zero(value)
        values.setdefault(found.name, {})[pair["key"] if "key" in pair else _zero(key)] = content

    def packed(self, found: _Field, at: int, end: int, values: Values) -> None:
        items = values.setdefault(found.name, [])
        while at < end:
            self.spend()
            raw: int | bytes
            if found.wire == _VARINT:
                raw, at = self.varint(at, end)
            else:
                start, at = self.extent(found.wire, at, end)
                raw = self.data[start:at]
            items.append(found.value(raw))


def _zero(scalar: _Field) -> Any:
    assert scalar.kind
    return scalar.enum(0) if scalar.enum else scalar.kind.zero


def _build(table: _Table, values: Values) -> Message:
    """Make the message, sub-messages first."""
    for single in table.single_messages:
        if single.name in values:
            values[single.name] = _build(_table(cast("type[Message]", single.message)), values[single.name])
    return table.cls(**values)


def decode(cls: type[MessageT], data: Buffer, *, limit: int = MAX_BYTES) -> MessageT:
    """The message of class `cls` that `data` is. Fields that the class does not have are dropped.

    Raises InvalidArgument when it is not one, is longer than `limit` bytes or holds more than MAX_VALUES values.
    """
    if len(data) > limit:
        raise InvalidArgument("decode", cls.__name__, f"{len(data)} bytes are more than {limit}")
    table = _table(cls)
    decoder = _Decoder(bytes(data))
    try:
        return cast(MessageT, _build(table, decoder.fill(table.by_number, {}, 0, len(data))))
    except _Malformed as error:
        raise InvalidArgument("decode", cls.__name__, str(error)) from error
    except UnicodeDecodeError as error:
        raise InvalidArgument("decode", cls.__name__, "text is not UTF-8") from error


# ---------------------------------------------------------------------------------------------------------- encode


def encode(message: Message) -> bytes:
    """The bytes of a message.

    Raises InvalidArgument for a value that its field cannot hold: of another type, out of range, or text that is not
    Unicode (a path with stray bytes in it).
    """
    _check(message)
    try:
        return bytes(message)
    except (UnicodeEncodeError, struct.error) as error:
        raise InvalidArgument("encode", type(message).__name__, str(error)) from error


def _check(message: Message) -> None:
    for part in _table(type(message)).by_number.values():
        value = getattr(message, part.name)
        if value is None and not part.repeated and not part.entry:
            continue
        if part.entry:
            _check_all(message, part.entry[0], value.keys())
            _check_all(message, part.entry[1], value.values())
        else:
            _check_all(message, part, value if part.repeated else (value,))


def _check_all(message: Message, part: _Field, values: Iterable[Any]) -> None:
    """Each of the values fits the field `part` of `message`."""
    for value in values:
        if part.message:
            if type(value) is not part.message:
                raise _misfit(message, part, value)
            _check(value)
        elif part.kind and not _fits(part.kind, value):
            raise _misfit(message, part, value)


def _fits(kind: _Kind, value: Any) -> bool:
    if kind.wire == _VARINT:
        return isinstance(value, int) and kind.low <= value <= kind.high
    return isinstance(value, kind.python)


def _misfit(message: Message, part: _Field, value: Any) -> InvalidArgument:
    return InvalidArgument("encode", f"{type(message).__name__}.{part.name}", f"{value!r:.100} does not fit")


# ------------------------------------------------------------------------------------------------- Any, Timestamp


def full_name(cls: type[Message]) -> str:
    """The proto name of a message class; our stand-ins for google's types have google's names."""
    name = default_message_pool.type_to_url[cls].rpartition("/")[2]
    return name.replace("kata_shimd.wkt.", "google.protobuf.")


def type_name(url: str) -> str:
    """The type that an Any's `type_url` names.

    containerd writes the bare name, others put google's host before it; the types of OCI's JSON have slashes of their
    own. Rule: `containerd.md` §2.4.
    """
    prefix, _, name = url.rpartition("/")
    return name if prefix.endswith("type.googleapis.com") else url


def pack_any(message: Message) -> wkt.Any:
    """An Any with the bare name, as containerd reads it. Raises InvalidArgument as `encode` does."""
    return wkt.Any(type_url=full_name(type(message)), value=encode(message))


def unpack(packed: wkt.Any, cls: type[MessageT]) -> MessageT:
    """The message in an Any. Raises InvalidArgument when it is of another type or malformed."""
    if type_name(packed.type_url) != full_name(cls):
        raise InvalidArgument("unpack", full_name(cls), f"the type is {packed.type_url!r:.200}")
    return decode(cls, packed.value)


def timestamp(nanoseconds: int) -> wkt.Timestamp:
    """The Timestamp of that many nanoseconds since the epoch, which may be negative."""
    seconds, nanos = divmod(nanoseconds, NANOSECONDS)
    return wkt.Timestamp(seconds=seconds, nanos=nanos)


def nanoseconds(time: wkt.Timestamp) -> int:
    """Nanoseconds since the epoch. Raises InvalidArgument unless `nanos` is a part of a second."""
    if not 0 <= time.nanos < NANOSECONDS:
        raise InvalidArgument("read timestamp", "nanos", f"{time.nanos} is not between 0 and 999999999")
    return time.seconds * NANOSECONDS + time.nanos
