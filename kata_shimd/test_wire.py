"""Our codec against google's, over every message there is."""

import runpy
from functools import cache
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
from google.protobuf import descriptor_pool, json_format, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError
from google.protobuf.message import Message as GoogleMessage
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kata_shimd import wire
from kata_shimd.api import agent, bootstrap, cgroup2, events, forward, task, wkt
from kata_shimd.api._generated.message_pool import default_message_pool
from kata_shimd.errors import InvalidArgument

GENERATE = Path(__file__).resolve().parents[1] / "protos" / "generate.py"
RELAXED = settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@cache
def messages() -> dict[str, tuple[type, type[GoogleMessage]]]:
    """(our class, google's class) of every top-level message, by full name."""
    generator = SimpleNamespace(**runpy.run_path(str(GENERATE)))
    files = generator.descriptors()
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.Add(file)
    for alias in generator.ALIASES.values():
        import_module(f"kata_shimd.api.{alias}")
    ours = {url.rpartition("/")[2]: cls for url, cls in default_message_pool.url_to_type.items()}
    names = [f"{file.package}.{message.name}" for file in files.file for message in file.message_type]
    return {
        name: (ours[name], message_factory.GetMessageClass(pool.FindMessageTypeByName(name))) for name in sorted(names)
    }


INTEGERS = {
    FieldDescriptor.TYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: st.integers(-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT32: st.integers(0, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: st.integers(0, 2**64 - 1),
    FieldDescriptor.TYPE_ENUM: st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_DOUBLE: st.floats(allow_nan=False),
    FieldDescriptor.TYPE_STRING: st.text(max_size=8),
    FieldDescriptor.TYPE_BYTES: st.binary(max_size=8),
}


def is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def fill(draw, message: GoogleMessage, descriptor: Descriptor) -> None:
    """Set some of the fields to anything."""
    if not descriptor.fields:
        return
    for field in draw(st.lists(st.sampled_from(list(descriptor.fields)), max_size=5, unique_by=lambda f: f.number)):
        target = getattr(message, field.name)
        if is_map(field):
            fill_map(draw, target, field)
        elif field.message_type is not None:
            parts = [target.add() for _ in range(draw(st.integers(1, 2)))] if field.is_repeated else [target]
            for part in parts:
                part.SetInParent()
                fill(draw, part, field.message_type)
        elif field.is_repeated:
            target.extend(draw(st.lists(INTEGERS[field.type], max_size=4)))
        else:
            setattr(message, field.name, draw(INTEGERS[field.type]))


def fill_map(draw, target, field: FieldDescriptor) -> None:
    key, value = (field.message_type.fields_by_name[half] for half in ("key", "value"))
    for name in draw(st.lists(INTEGERS[key.type], max_size=3)):
        if value.message_type is None:
            target[name] = draw(INTEGERS[value.type])
        else:
            fill(draw, target[name], value.message_type)


@st.composite
def filled(draw):
    """(our class, a message of google's)."""
    ours, google = messages()[draw(st.sampled_from(list(messages())))]
    message = google()
    fill(draw, message, google.DESCRIPTOR)
    return ours, message


def content(message: GoogleMessage) -> dict:
    """Everything in it but unknown fields; -0.0, which betterproto2 does not write, is 0.0."""
    return json_format.MessageToDict(message, always_print_fields_with_no_presence=True)


@RELAXED
@given(filled())
def test_reads_and_writes_what_google_writes_and_reads(pair):
    cls, theirs = pair
    data = theirs.SerializeToString()
    ours = wire.decode(cls, data)
    assert content(type(theirs).FromString(wire.encode(ours))) == content(theirs)
    assert ours == cls.parse(data)


@RELAXED
@given(filled(), st.data())
def test_damaged_bytes_are_refused_or_read_as_google_reads_them(pair, data):
    cls, theirs = pair
    damaged = bytearray(theirs.SerializeToString(deterministic=True))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged)))
        damaged[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    try:
        ours = wire.decode(cls, damaged)
    except InvalidArgument:
        return
    assert content(type(theirs).FromString(bytes(damaged))) == content(type(theirs).FromString(wire.encode(ours)))


@RELAXED
@given(st.data(), st.binary(max_size=64))
def test_random_bytes_raise_nothing_but_invalid_argument(data, junk):
    cls, google = messages()[data.draw(st.sampled_from(list(messages())))]
    try:
        wire.decode(cls, junk)
    except InvalidArgument:
        return
    google.FromString(junk)


def extreme(field: FieldDescriptor, high: bool):
    """The largest or the smallest value of a scalar field, or something that is not zero."""
    spans = {FieldDescriptor.TYPE_INT32: (-31, 31), FieldDescriptor.TYPE_INT64: (-63, 63)}
    spans |= {FieldDescriptor.TYPE_UINT32: (0, 32), FieldDescriptor.TYPE_UINT64: (0, 64)}
    spans |= {FieldDescriptor.TYPE_ENUM: (-31, 31)}
    if field.type in spans:
        low_bits, high_bits = spans[field.type]
        return 2**high_bits - 1 if high else -(2**-low_bits) if low_bits else 1
    others = {FieldDescriptor.TYPE_BOOL: True, FieldDescriptor.TYPE_DOUBLE: 1.5}
    others |= {FieldDescriptor.TYPE_STRING: "\u00e9\U0001f980", FieldDescriptor.TYPE_BYTES: b"\x00\xff"}
    return others[field.type]


def saturate(message: GoogleMessage, high: bool) -> None:
    """Set every field, at every depth."""
    for field in message.DESCRIPTOR.fields:
        target = getattr(message, field.name)
        if is_map(field):
            key, value = (field.message_type.fields_by_name[half] for half in ("key", "value"))
            if value.message_type is not None:
                saturate(target[extreme(key, high)], high)
            else:
                target[extreme(key, high)] = extreme(value, high)
        elif field.message_type is not None:
            saturate(target.add() if field.is_repeated else target, high)
            if not field.is_repeated:
                target.SetInParent()
        elif field.is_repeated:
            target.extend([extreme(field, high)] * 2)
        else:
            setattr(message, field.name, extreme(field, high))


@pytest.mark.parametrize("high", [False, True])
def test_every_field_of_every_message_arrives(high):
    for cls, google in messages().values():
        theirs = google()
        saturate(theirs, high)
        ours = wire.decode(cls, theirs.SerializeToString())
        assert ours == cls.parse(theirs.SerializeToString())
        assert google.FromString(wire.encode(ours)) == theirs


@pytest.mark.parametrize("name", ["grpc.WaitProcessResponse", "grpc.RemoveContainerRequest", "types.IPAddress"])
def test_a_number_too_wide_for_its_field_is_cut_as_google_cuts_it(name):
    cls, google = messages()[name]
    field = next(f for f in google.DESCRIPTOR.fields if f.type not in (f.TYPE_STRING, f.TYPE_BYTES))
    data = bytes([field.number << 3]) + b"\x85\x80\x80\x80\xf8\x01"
    ours, theirs = wire.decode(cls, data), google.FromString(data)
    assert getattr(ours, field.name) == getattr(theirs, field.name)
    assert abs(getattr(ours, field.name)) < 2**32


def test_no_oneof_has_members_to_choose_from():
    """The decoder relies on it: members do not displace each other."""
    oneofs = [oneof for _, google in messages().values() for oneof in google.DESCRIPTOR.oneofs]
    assert oneofs
    assert all(len(oneof.fields) == 1 for oneof in oneofs)


def test_every_class_has_a_table():
    for cls, google in messages().values():
        assert wire._table(cls).by_number.keys() == {field.number for field in google.DESCRIPTOR.fields}


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x0a\x05ab", id="length beyond the end"),
        pytest.param(b"\x0a", id="no length"),
        pytest.param(b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", id="length of 2**64"),
        pytest.param(b"\x80", id="tag cut off"),
        pytest.param(b"\x18" + b"\xff" * 10 + b"\x01", id="varint of eleven bytes"),
        pytest.param(b"\x18" + b"\xff" * 9 + b"\x7f", id="varint beyond 64 bits"),
        pytest.param(b"\x18" + b"\x80" * 10 + b"\x00", id="zero in eleven bytes"),
        pytest.param(b"\x80\x80\x80\x80\x10\x00", id="field number 2**29"),
        pytest.param(b"\x08\x01", id="varint where text belongs"),
        pytest.param(b"\x1a\x01\x01", id="bytes where a number belongs"),
        pytest.param(b"\x1d\x01\x02\x03\x04", id="fixed32 where a number belongs"),
        pytest.param(b"\x00\x01", id="field number 0"),
        pytest.param(b"\x0b\x0c", id="group"),
        pytest.param(b"\x7b\x7c", id="group of unknown number"),
        pytest.param(b"\x0f", id="wire type 7"),
        pytest.param(b"\x0a\x01\xff", id="text that is not UTF-8"),
        pytest.param(b"\x79\x01", id="unknown fixed64 cut off"),
    ],
)
def test_refuses(data):
    with pytest.raises(InvalidArgument):
        wire.decode(agent.SignalProcessRequest, data)


def test_damage_inside_a_sub_message_is_found():
    with pytest.raises(InvalidArgument):
        wire.decode(forward.ForwardRequest, b"\x0a\x03\x12\x05a")


def test_refuses_more_bytes_than_the_limit():
    data = wire.encode(agent.ReadStreamResponse(data=b"x" * 100))
    assert wire.decode(agent.ReadStreamResponse, data, limit=len(data)).data == b"x" * 100
    with pytest.raises(InvalidArgument):
        wire.decode(agent.ReadStreamResponse, data, limit=len(data) - 1)


@pytest.mark.parametrize(
    ("cls", "one", "many"),
    [
        pytest.param(agent.Hooks, b"\x0a\x00", lambda n: b"\x0a\x00" * n, id="empty sub-messages"),
        pytest.param(agent.User, b"\x1a\x00", lambda n: b"\x1a" + length(n) + b"\x01" * n, id="packed numbers"),
        pytest.param(agent.User, b"\x78\x01", lambda n: b"\x78\x01" * n, id="unknown fields"),
    ],
)
def test_refuses_more_values_than_the_limit(monkeypatch, cls, one, many):
    monkeypatch.setattr(wire, "MAX_VALUES", 300)
    wire.decode(cls, one)
    wire.decode(cls, many(298))
    with pytest.raises(InvalidArgument):
        wire.decode(cls, many(301))


def length(number: int) -> bytes:
    return bytes([number & 0x7F | 0x80, number >> 7])


def test_sub_message_that_comes_twice_is_merged():
    twice = b"\x1a\x03\x0a\x01a" + b"\x1a\x03\x12\x01b"
    assert wire.decode(agent.CreateContainerRequest, twice).string_user == agent.StringUser(uid="a", gid="b")


def test_map_entry_without_value_has_the_zero():
    assert wire.decode(agent.CgroupStats, b"\x2a\x04\x0a\x02ab").hugetlb_stats == {"ab": agent.HugetlbStats()}
    assert wire.decode(agent.MemoryStats, b"\x32\x02\x10\x07").stats == {"": 7}


def test_unknown_fields_are_dropped_and_unknown_enum_members_kept():
    assert wire.encode(wire.decode(task.CreateTaskResponse, b"\x08\x05\x78\x01\x7a\x02ab")) == b"\x08\x05"
    assert wire.decode(bootstrap.BootstrapParams, b"\x18\xfe" + b"\xff" * 8 + b"\x01").log_level == -2
    known = wire.decode(bootstrap.BootstrapParams, b"\x18\x04").log_level
    assert (known, type(known)) == (bootstrap.LogLevel.WARN, bootstrap.LogLevel)


@pytest.mark.parametrize(
    "message",
    [
        agent.SignalProcessRequest(signal=-1),
        agent.SignalProcessRequest(signal=1 << 32),
        agent.WaitProcessResponse(status=1 << 31),
        agent.CopyFileRequest(offset=-(1 << 63) - 1),
        agent.MemHotplugByProbeRequest(mem_hotplug_probe_addr=[0, -1]),
        agent.MemoryStats(stats={"cache": -1}),
        agent.MemoryStats(stats={3: 1}),
        agent.CgroupStats(pids_stats=agent.PidsStats(limit=-1)),
        agent.StartContainerRequest(container_id="caf\udce9"),
        agent.StartContainerRequest(container_id=b"bytes"),
        agent.Process(args=["sh", None]),
        agent.Interfaces(interfaces=[wkt.Empty()]),
        cgroup2.PsiData(avg10=10**400),
    ],
)
def test_encode_refuses_what_does_not_fit(message):
    with pytest.raises(InvalidArgument):
        wire.encode(message)


def test_encode_takes_any_buffer():
    request = agent.WriteStreamRequest(container_id="c", data=memoryview(b"line\n"))
    assert wire.decode(agent.WriteStreamRequest, memoryview(wire.encode(request))).data == b"line\n"


def test_any_has_the_bare_name_and_is_read_with_googles_host_too():
    message = events.TaskExit(container_id="c", exited_at=wkt.Timestamp(seconds=1, nanos=123456789))
    packed = wire.pack_any(message)
    assert packed.type_url == "containerd.events.TaskExit"
    assert wire.unpack(packed, events.TaskExit) == message
    assert wire.unpack(wkt.Any(f"type.googleapis.com/{packed.type_url}", packed.value), events.TaskExit) == message
    with pytest.raises(InvalidArgument):
        wire.unpack(packed, events.TaskOom)


def test_any_of_a_well_known_type_has_googles_name():
    assert wire.pack_any(wkt.Empty()).type_url == "google.protobuf.Empty"


@pytest.mark.parametrize(
    "url", ["types.containerd.io/opencontainers/runtime-spec/1/Process", "runtimeoptions.v1.Options", ""]
)
def test_type_name_keeps_the_slashes_of_others(url):
    assert wire.type_name(url) == url


@given(st.integers(-(2**62), 2**62))
def test_timestamps_are_exact(nanoseconds):
    time = wire.timestamp(nanoseconds)
    assert 0 <= time.nanos < 10**9
    assert wire.nanoseconds(wire.decode(wkt.Timestamp, wire.encode(time))) == nanoseconds


@pytest.mark.parametrize("nanos", [-1, 10**9])
def test_timestamp_with_impossible_nanos_is_refused(nanos):
    with pytest.raises(InvalidArgument):
        wire.nanoseconds(wkt.Timestamp(nanos=nanos))


def test_google_refuses_what_we_refuse_for_its_framing():
    """The oracle itself: a truncated field is an error there too."""
    _, google = messages()["grpc.SignalProcessRequest"]
    with pytest.raises(DecodeError):
        google.FromString(b"\x0a\x05ab")
