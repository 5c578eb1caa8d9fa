"""The hand-written codec against google protobuf's, which is told the same field table."""

from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory
from hypothesis import given
from hypothesis import strategies as st

from .envelope import (
    Detail,
    Malformed,
    Request,
    Response,
    Status,
    decode_request,
    decode_response,
    encode_request,
    encode_response,
)

STRING, BYTES, INT64, INT32, MESSAGE = 9, 12, 3, 5, 11
ONE, MANY = 1, 3

#: message → fields as (name, number, type, label, message type)
TABLE: dict[str, list[tuple[str, int, int, int, str]]] = {
    "Any": [("type_url", 1, STRING, ONE, ""), ("value", 2, BYTES, ONE, "")],
    "Status": [
        ("code", 1, INT32, ONE, ""),
        ("message", 2, STRING, ONE, ""),
        ("details", 3, MESSAGE, MANY, ".test.Any"),
    ],
    "KeyValue": [("key", 1, STRING, ONE, ""), ("value", 2, STRING, ONE, "")],
    "Request": [
        ("service", 1, STRING, ONE, ""),
        ("method", 2, STRING, ONE, ""),
        ("payload", 3, BYTES, ONE, ""),
        ("timeout_nano", 4, INT64, ONE, ""),
        ("metadata", 5, MESSAGE, MANY, ".test.KeyValue"),
    ],
    "Response": [("status", 1, MESSAGE, ONE, ".test.Status"), ("payload", 2, BYTES, ONE, "")],
}


def _reference() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="test_ttrpc.proto", package="test", syntax="proto3")
    for name, fields in TABLE.items():
        described = file.message_type.add(name=name)
        for field, number, type_, label, of in fields:
            described.field.add(name=field, number=number, type=type_, label=label, type_name=of or None)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"test.{name}")) for name in TABLE}


REFERENCE = _reference()

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
int64 = st.integers(-(2**63), 2**63 - 1)
values = st.lists(text, min_size=1, max_size=3).map(tuple)
requests = st.builds(Request, text, text, st.binary(max_size=300), int64, st.dictionaries(text, values, max_size=3))
details = st.lists(st.builds(Detail, text, st.binary(max_size=200)), max_size=3).map(tuple)
statuses = st.builds(Status, st.integers(-(2**31), 2**31 - 1), text, details)
responses = st.builds(Response, st.none() | statuses, st.binary(max_size=300))


def request_of(theirs: Any) -> Request:
    metadata: dict[str, tuple[str, ...]] = {}
    for pair in theirs.metadata:
        metadata[pair.key] = (*metadata.get(pair.key, ()), pair.value)
    return Request(theirs.service, theirs.method, theirs.payload, theirs.timeout_nano, metadata)


def response_of(theirs: Any) -> Response:
    if not theirs.HasField("status"):
        return Response(None, theirs.payload)
    found = tuple(Detail(detail.type_url, detail.value) for detail in theirs.status.details)
    return Response(Status(theirs.status.code, theirs.status.message, found), theirs.payload)


def theirs_of_request(request: Request) -> Any:
    theirs = REFERENCE["Request"](
        service=request.service, method=request.method, payload=request.payload, timeout_nano=request.timeout_nano
    )
    for key, several in request.metadata.items():
        for value in several:
            theirs.metadata.add(key=key, value=value)
    return theirs


def theirs_of_response(response: Response) -> Any:
    theirs = REFERENCE["Response"](payload=response.payload)
    if response.status is not None:
        theirs.status.SetInParent()
        theirs.status.code, theirs.status.message = response.status.code, response.status.message
        for detail in response.status.details:
            theirs.status.details.add(type_url=detail.type_url, value=detail.value)
    return theirs


@given(requests)
def test_request_bytes_are_the_reference_s_and_come_back(request_: Request) -> None:
    data = encode_request(request_)
    assert data == theirs_of_request(request_).SerializeToString(deterministic=True)
    assert decode_request(data) == request_


@given(responses)
def test_response_bytes_are_the_reference_s_and_come_back(response: Response) -> None:
    data = encode_response(response)
    assert data == theirs_of_response(response).SerializeToString(deterministic=True)
    assert decode_response(data) == response


@st.composite
def mutated(draw: st.DrawFn, messages: st.SearchStrategy[bytes]) -> bytes:
    """Valid bytes, two of them end to end, cut short, or with one byte changed."""
    data = draw(messages) + draw(messages | st.just(b""))
    data = data[: draw(st.integers(0, len(data)))]
    if data and draw(st.booleans()):
        at = draw(st.integers(0, len(data) - 1))
        data = data[:at] + bytes([draw(st.integers(0, 255))]) + data[at + 1 :]
    return data


def judged(decode: Any, data: bytes) -> Any:
    try:
        return decode(data)
    except Malformed as error:
        return error


def judged_by_reference(name: str, data: bytes) -> Any:
    try:
        return REFERENCE[name].FromString(data)
    except message.DecodeError as error:
        return error


def check_agreement(data: bytes, ours: Any, theirs: Any, convert: Any) -> None:
    """Equal, or both refuse; we may refuse what the reference skips (groups), never take what it refuses."""
    if isinstance(ours, Malformed):
        has_group = any(byte & 7 in (3, 4) for byte in data)
        assert isinstance(theirs, message.DecodeError) or has_group, ours
    else:
        assert not isinstance(theirs, message.DecodeError), theirs
        assert ours == convert(theirs)


@given(mutated(requests.map(encode_request)) | st.binary(max_size=60))
def test_any_request_bytes_mean_the_same_to_both(data: bytes) -> None:
    check_agreement(data, judged(decode_request, data), judged_by_reference("Request", data), request_of)


@given(mutated(responses.map(encode_response)) | st.binary(max_size=60))
def test_any_response_bytes_mean_the_same_to_both(data: bytes) -> None:
    check_agreement(data, judged(decode_response, data), judged_by_reference("Response", data), response_of)


@pytest.mark.parametrize(
    "data",
    [
        b"\x0a",  # a length that is missing
        b"\x0a\x05ab",  # five bytes announced, two there (libs.md §1: the usual codec takes it)
        b"\x20",  # a number that is missing
        b"\x20\x80",  # a number that breaks off
        b"\x20" + b"\xff" * 10,  # a number that does not end
        b"\x00\x00",  # field 0
        b"\x0b\x0c",  # a group
        b"\x0e",  # wire type 6
        b"\x0a\x01\xff",  # not UTF-8
        b"\x31\0\0",  # a fixed64 that breaks off
        b"\x2a\x02\x0a\x05",  # metadata that breaks off inside
    ],
)
def test_truncated_or_illegal_is_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        decode_request(data)


def test_unknown_fields_and_wrong_wire_types_are_skipped() -> None:
    unknown = b"\x32\x01x" + b"\x38\x01" + b"\x41" + bytes(8) + b"\x4d" + bytes(4) + b"\x08\x01" + b"\x22\x01x"
    assert decode_request(unknown + b"\x0a\x01s") == Request("s", "")


def test_no_bytes_are_a_success_without_payload() -> None:
    """containerd.md §3.1: the reply to Forward is 0 bytes long."""
    assert decode_response(b"") == Response(None, b"")
    assert encode_response(Response(None)) == b""


def test_status_in_two_pieces_is_merged_but_each_must_be_whole() -> None:
    assert decode_response(b"\x0a\x02\x08\x05" + b"\x0a\x03\x12\x01m") == Response(Status(5, "m"))
    with pytest.raises(Malformed):
        decode_response(b"\x0a\x01\x08" + b"\x0a\x01\x05")


def test_status_zero_is_not_absent() -> None:
    """Rust peers say OK with a status; Go's leave it out."""
    assert decode_response(b"\x0a\x00") == Response(Status(0))
