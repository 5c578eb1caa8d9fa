"""The pure core: every (role, state, frame), every malformed input, and the two ends against each other."""

from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ..errors import Code, ResourceExhausted, Unavailable
from . import frames
from .envelope import Request, Response, Status, decode_response, encode_request, encode_response
from .events import (
    DataReceived,
    Event,
    Ignored,
    PeerClosed,
    PeerHostile,
    Refused,
    RequestReceived,
    ResponseReceived,
    StreamFailed,
)
from .frames import DATA, MAX_DATA, NO_DATA, REMOTE_CLOSED, REMOTE_OPEN, REQUEST, RESPONSE, pack
from .protocol import (
    MAX_LINGERING,
    MAX_STRAYS,
    TRANSITIONS,
    Connection,
    Kind,
    OutOfOrder,
    Role,
    State,
    kind_of,
)

#: The frame of each kind, as type and flags.
WIRE = {
    Kind.CALL: (REQUEST, 0),
    Kind.OPEN: (REQUEST, REMOTE_OPEN),
    Kind.ASK: (REQUEST, REMOTE_CLOSED),
    Kind.RESPONSE: (RESPONSE, 0),
    Kind.DATA: (DATA, 0),
    Kind.LAST: (DATA, REMOTE_CLOSED | NO_DATA),
}
REQUESTS = {Kind.CALL, Kind.OPEN, Kind.ASK}
CALL = encode_request(Request("a.B", "C", b"payload"))


def server_in(state: State) -> Connection:
    """A server whose stream 1 is in ``state``."""
    server = Connection(Role.SERVER)
    opened = {State.UNARY: Kind.CALL, State.OPEN: Kind.OPEN, State.SERVER_DONE: Kind.OPEN, State.CLIENT_DONE: Kind.ASK}
    if state in opened:
        server.receive(frame(opened[state], CALL))
    if state is State.SERVER_DONE:
        server.send_reply(1, b"")
    return server


def client_in(state: State) -> Connection:
    """A client whose stream 1 is in ``state``."""
    client = Connection(Role.CLIENT)
    opened = {State.UNARY: Kind.CALL, State.OPEN: Kind.OPEN, State.CLIENT_DONE: Kind.ASK, State.ABANDONED: Kind.OPEN}
    if state in opened:
        client.send_request("a.B", "C", kind=opened[state])
    if state is State.ABANDONED:
        client.forget(1)
    return client


def frame(kind: Kind, data: bytes = b"", stream: int = 1) -> bytes:
    return pack(stream, *WIRE[kind], data)


def one(events: list[Event]) -> Event:
    (event,) = events
    return event


def answer_code(event: Event) -> int:
    """The code that an answer carries, having checked that it says what the event says."""
    assert isinstance(event, Refused | StreamFailed)
    (answer,) = frames.FrameDecoder().feed(event.answer)
    assert isinstance(answer, frames.Frame)
    assert (answer.stream, answer.type, answer.flags) == (event.stream, RESPONSE, 0)
    assert decode_response(answer.data).status == event.status
    return event.status.code


SERVER_STATES = [State.IDLE, State.UNARY, State.OPEN, State.CLIENT_DONE, State.SERVER_DONE]
CLIENT_STATES = [State.IDLE, State.UNARY, State.OPEN, State.CLIENT_DONE, State.ABANDONED]


@pytest.mark.parametrize(("state", "kind"), list(product(SERVER_STATES, Kind)))
def test_server_receives_every_frame_in_every_state(state: State, kind: Kind) -> None:
    server = server_in(state)
    assert server.state(1) is state
    events = server.receive(frame(kind, CALL if kind in REQUESTS else b""))
    after = TRANSITIONS.get((Role.CLIENT, state, kind))
    if kind is Kind.RESPONSE:
        assert one(events) == Ignored(1, RESPONSE)
        assert server.state(1) is state
    elif after is None:
        assert answer_code(one(events)) == Code.INVALID_ARGUMENT
        assert isinstance(
            one(events), StreamFailed if state in (State.UNARY, State.OPEN, State.CLIENT_DONE) else Refused
        )
        assert not server.is_live(1)
    elif state is State.SERVER_DONE:
        assert events == []
        assert server.state(1) is (State.IDLE if after is State.ENDED else after)
    else:
        assert isinstance(one(events), RequestReceived if kind in REQUESTS else DataReceived)
        assert server.state(1) is after


@pytest.mark.parametrize(("state", "kind"), list(product(CLIENT_STATES, Kind)))
def test_client_receives_every_frame_in_every_state(state: State, kind: Kind) -> None:
    client = client_in(state)
    assert client.state(1) is state
    events = client.receive(frame(kind))
    after = TRANSITIONS.get((Role.SERVER, state, kind))
    if after is None and state in (State.IDLE, State.ABANDONED):
        assert one(events) == Ignored(1, WIRE[kind][0])
        assert client.state(1) is state
    elif after is None:
        event = one(events)
        assert isinstance(event, StreamFailed)
        assert (event.status.code, event.answer) == (Code.INTERNAL, b"")
        assert client.state(1) is State.ABANDONED
    elif state is State.ABANDONED:
        assert events == []
    else:
        assert isinstance(one(events), ResponseReceived if kind is Kind.RESPONSE else DataReceived)
        # The client says nothing more on a stream that the server has ended.
        assert client.state(1) is (State.IDLE if after in (State.ENDED, State.SERVER_DONE) else after)


@pytest.mark.parametrize(("state", "kind"), list(product(SERVER_STATES, [Kind.RESPONSE, Kind.DATA, Kind.LAST])))
def test_server_sends_only_what_the_table_allows(state: State, kind: Kind) -> None:
    server = server_in(state)
    send = {
        Kind.RESPONSE: lambda: server.send_reply(1, b""),
        Kind.DATA: lambda: server.send_data(1, b""),
        Kind.LAST: lambda: server.send_end(1),
    }[kind]
    after = TRANSITIONS.get((Role.SERVER, state, kind))
    if after is None:
        with pytest.raises(OutOfOrder):
            send()
        assert server.state(1) is state
    else:
        assert send() == frame(kind)
        assert server.state(1) is (State.IDLE if after is State.ENDED else after)


@pytest.mark.parametrize(("state", "kind"), list(product(CLIENT_STATES, [Kind.DATA, Kind.LAST])))
def test_client_sends_only_what_the_table_allows(state: State, kind: Kind) -> None:
    client = client_in(state)
    after = TRANSITIONS.get((Role.CLIENT, state, kind))
    if after is None:
        with pytest.raises(OutOfOrder):
            client.send_data(1, b"") if kind is Kind.DATA else client.send_end(1)
    else:
        assert (client.send_data(1, b"") if kind is Kind.DATA else client.send_end(1)) == frame(kind)
        assert client.state(1) is after


@pytest.mark.parametrize("flags", range(256))
def test_flags_of_a_request(flags: int) -> None:
    """Rust opens a client's stream with 0x06; bits that nobody has defined mean nothing."""
    kind = Kind.OPEN if flags & REMOTE_OPEN else Kind.ASK if flags & REMOTE_CLOSED else Kind.CALL
    assert kind_of(REQUEST, flags) is kind


@pytest.mark.parametrize(
    ("flags", "payload", "has"),
    [(0, b"", True), (1, b"", True), (2, b"", False), (2, b"x", True), (6, b"", False), (6, b"x", False)],
)
def test_first_message_of_a_stream(flags: int, payload: bytes, has: bool) -> None:
    data = encode_request(Request("a.B", "C", payload))
    event = one(Connection(Role.SERVER).receive(pack(1, REQUEST, flags, data)))
    assert isinstance(event, RequestReceived)
    assert event.has_payload is has


@pytest.mark.parametrize(
    ("flags", "data", "expected"),
    [
        (0, b"", DataReceived(1, b"", False)),
        (NO_DATA, b"", DataReceived(1, None, False)),
        (NO_DATA, b"junk", DataReceived(1, None, False)),
        (REMOTE_CLOSED, b"", DataReceived(1, b"", True)),
        (REMOTE_CLOSED, b"end", DataReceived(1, b"end", True)),
        (REMOTE_CLOSED | NO_DATA, b"", DataReceived(1, None, True)),
    ],
)
def test_flags_of_data(flags: int, data: bytes, expected: DataReceived) -> None:
    """Zero bytes without NO_DATA are a message (containerd.md §3.2)."""
    assert server_in(State.OPEN).receive(pack(1, DATA, flags, data)) == [expected]


class TestServerAnswers:
    def test_even_id(self) -> None:
        assert (
            answer_code(one(Connection(Role.SERVER).receive(frame(Kind.CALL, CALL, stream=2)))) == Code.INVALID_ARGUMENT
        )

    def test_ids_need_not_increase(self) -> None:
        server = Connection(Role.SERVER)
        events = server.receive(frame(Kind.CALL, CALL, 7) + frame(Kind.CALL, CALL, 3))
        assert [type(event) for event in events] == [RequestReceived, RequestReceived]

    def test_an_id_may_come_again_once_its_stream_is_over(self) -> None:
        server = server_in(State.UNARY)
        server.send_reply(1, b"")
        assert isinstance(one(server.receive(frame(Kind.CALL, CALL))), RequestReceived)

    def test_unparsable_request(self) -> None:
        event = one(Connection(Role.SERVER).receive(frame(Kind.CALL, b"\x0a\x05ab")))
        assert isinstance(event, Refused)
        assert answer_code(event) == Code.INVALID_ARGUMENT

    def test_data_after_an_unparsable_open_is_dropped(self) -> None:
        server = Connection(Role.SERVER)
        server.receive(frame(Kind.OPEN, b"\xff"))
        assert server.receive(frame(Kind.DATA) + frame(Kind.LAST)) == []
        assert server.state(1) is State.IDLE

    def test_unknown_type(self) -> None:
        assert Connection(Role.SERVER).receive(pack(1, 9, 0, b"x")) == [Ignored(1, 9)]

    def test_too_many_calls(self) -> None:
        server = Connection(Role.SERVER, max_streams=2)
        server.receive(frame(Kind.CALL, CALL, 1) + frame(Kind.CALL, CALL, 3))
        assert answer_code(one(server.receive(frame(Kind.CALL, CALL, 5)))) == Code.RESOURCE_EXHAUSTED
        server.send_reply(1, b"")
        assert isinstance(one(server.receive(frame(Kind.CALL, CALL, 5))), RequestReceived)

    @pytest.mark.parametrize("kind", [Kind.CALL, Kind.OPEN, Kind.ASK, Kind.DATA, Kind.LAST])
    def test_oversize_without_stream(self, kind: Kind) -> None:
        server = Connection(Role.SERVER, max_data=100)
        events = server.receive(frame(kind, bytes(101)) + frame(Kind.CALL, CALL, 3))
        assert isinstance(events[0], Refused)
        assert answer_code(events[0]) == Code.RESOURCE_EXHAUSTED
        assert isinstance(events[1], RequestReceived)

    def test_oversize_on_a_stream_fails_that_stream_only(self) -> None:
        server = Connection(Role.SERVER, max_data=100)
        server.receive(frame(Kind.OPEN, CALL, 1) + frame(Kind.OPEN, CALL, 3))
        event = one(server.receive(frame(Kind.DATA, bytes(101))))
        assert isinstance(event, StreamFailed)
        assert answer_code(event) == Code.RESOURCE_EXHAUSTED
        assert server.receive(frame(Kind.DATA, b"x", 1) + frame(Kind.DATA, b"y", 3)) == [DataReceived(3, b"y", False)]

    def test_oversize_response_is_not_answered(self) -> None:
        server = Connection(Role.SERVER, max_data=100)
        assert server.receive(frame(Kind.RESPONSE, bytes(101))) == [Ignored(1, RESPONSE)]

    def test_reply_too_large_is_an_error_instead(self) -> None:
        answer = server_in(State.UNARY).send_reply(1, bytes(MAX_DATA))
        status = decode_response(answer[frames.HEADER.size :]).status
        assert status is not None
        assert status.code == Code.RESOURCE_EXHAUSTED

    def test_status_too_large_keeps_its_code(self) -> None:
        answer = server_in(State.UNARY).send_status(1, Status(5, "x" * MAX_DATA))
        status = decode_response(answer[frames.HEADER.size :]).status
        assert status is not None
        assert status.code == Code.NOT_FOUND

    def test_streams_over_for_us_only_are_bounded(self) -> None:
        server = Connection(Role.SERVER)
        for number in range(MAX_LINGERING + 10):
            server.receive(frame(Kind.OPEN, CALL, 2 * number + 1))
            server.send_end(2 * number + 1)
        assert (server.live, len(server._lingering)) == (0, MAX_LINGERING)
        assert server.state(1) is State.IDLE


class TestClient:
    def test_ids_are_odd_and_increase(self) -> None:
        client = Connection(Role.CLIENT)
        assert [client.send_request("a.B", "C")[0] for _ in range(3)] == [1, 3, 5]

    def test_a_request_too_large_uses_no_id(self) -> None:
        client = Connection(Role.CLIENT)
        with pytest.raises(ResourceExhausted):
            client.send_request("a.B", "C", bytes(MAX_DATA))
        assert client.send_request("a.B", "C")[0] == 1

    def test_ids_can_be_used_up(self) -> None:
        client = Connection(Role.CLIENT)
        client._next_id = 2**32 - 1
        assert client.send_request("a.B", "C")[0] == 2**32 - 1
        with pytest.raises(Unavailable):
            client.send_request("a.B", "C")

    def test_a_stream_opened_without_payload_says_no_data(self) -> None:
        _, data = Connection(Role.CLIENT).send_request("a.B", "C", kind=Kind.OPEN)
        assert data[9] == REMOTE_OPEN | NO_DATA

    def test_late_reply_is_dropped(self) -> None:
        client = client_in(State.UNARY)
        client.forget(1)
        assert client.receive(frame(Kind.RESPONSE)) == []
        assert client.state(1) is State.IDLE

    def test_unparsable_response_fails_the_call(self) -> None:
        event = one(client_in(State.UNARY).receive(frame(Kind.RESPONSE, b"\xff")))
        assert isinstance(event, StreamFailed)
        assert event.status.code == Code.INTERNAL

    def test_oversize_response_fails_the_call_only(self) -> None:
        client = Connection(Role.CLIENT, max_data=100)
        client.send_request("a.B", "C")
        client.send_request("a.B", "C")
        events = client.receive(frame(Kind.RESPONSE, bytes(101), 1) + frame(Kind.RESPONSE, b"", 3))
        assert isinstance(events[0], StreamFailed)
        assert events[0].status.code == Code.RESOURCE_EXHAUSTED
        assert events[1] == ResponseReceived(3, Response(None))

    def test_frames_nobody_asked_for_are_bounded(self) -> None:
        client = Connection(Role.CLIENT)
        events = client.receive(frame(Kind.RESPONSE, stream=99) * (MAX_STRAYS + 5))
        assert events[-1] == PeerHostile(MAX_STRAYS + 1)
        assert len(events) == MAX_STRAYS + 1
        assert client.receive(frame(Kind.RESPONSE)) == []

    def test_good_frames_make_up_for_stray_ones(self) -> None:
        client = Connection(Role.CLIENT)
        for _ in range(3 * MAX_STRAYS):
            stream, _ = client.send_request("a.B", "C")
            assert len(client.receive(frame(Kind.RESPONSE, stream=stream) + frame(Kind.RESPONSE, stream=stream))) == 2
        assert client.strays <= 1


@pytest.mark.parametrize(
    ("data", "missing"), [(b"", 0), (b"\0\0\0", 7), (frame(Kind.CALL, b"abc")[:-1], 1), (frame(Kind.RESPONSE), 0)]
)
@pytest.mark.parametrize("role", Role)
def test_end_of_the_byte_stream(role: Role, data: bytes, missing: int) -> None:
    connection = Connection(role)
    connection.receive(data)
    assert connection.receive_eof() == PeerClosed(missing)
    assert connection.receive(frame(Kind.CALL, CALL)) == []


wild = st.tuples(
    st.integers(0, 9), st.integers(0, 4), st.integers(0, 15), st.sampled_from([b"", CALL, b"\xff", b"\x0a\x00"])
)


@given(
    st.sampled_from(Role),
    st.lists(wild.map(lambda parts: pack(*parts)), max_size=12).map(b"".join),
    st.binary(max_size=20),
)
def test_no_input_raises_and_splitting_changes_nothing(role: Role, data: bytes, tail: bytes) -> None:
    data += tail
    whole = Connection(role)
    expected = whole.receive(data)
    split = Connection(role)
    assert [event for at in range(len(data)) for event in split.receive(data[at : at + 1])] == expected
    assert split._streams == whole._streams
    assert split.position == whole.position


class TwoEnds(RuleBasedStateMachine):
    """A client and a server that both keep to the table never see each other break it."""

    def __init__(self) -> None:
        super().__init__()
        self.client, self.server = Connection(Role.CLIENT), Connection(Role.SERVER)
        self.to_server, self.to_client = b"", b""

    @rule(kind=st.sampled_from(sorted(REQUESTS)))
    def request(self, kind: Kind) -> None:
        self.to_server += self.client.send_request("a.B", "C", kind=kind)[1]

    @precondition(lambda self: State.OPEN in self.client._streams.values())
    @rule(end=st.booleans())
    def client_speaks(self, end: bool) -> None:
        stream = next(key for key, state in self.client._streams.items() if state is State.OPEN)
        self.to_server += self.client.send_end(stream) if end else self.client.send_data(stream, b"x")

    @precondition(lambda self: self.server._streams)
    @rule(answer=st.integers(0, 3))
    def server_speaks(self, answer: int) -> None:
        stream, state = next(iter(self.server._streams.items()))
        if answer == 0 or state is State.UNARY:
            self.to_client += self.server.send_reply(stream, b"x")
        elif answer == 1:
            self.to_client += self.server.send_end(stream)
        else:
            self.to_client += self.server.send_data(stream, b"x")

    @precondition(lambda self: self.client._streams)
    @rule()
    def client_gives_up(self) -> None:
        stream, state = next(iter(self.client._streams.items()))
        if state is State.OPEN:
            self.to_server += self.client.send_end(stream)
        self.client.forget(stream)

    @rule(share=st.floats(0, 1))
    def deliver(self, share: float) -> None:
        cut = int(len(self.to_server) * share)
        events = self.server.receive(self.to_server[:cut])
        self.to_server = self.to_server[cut:]
        assert not [event for event in events if isinstance(event, Refused | StreamFailed | Ignored)]
        cut = int(len(self.to_client) * share)
        events = self.client.receive(self.to_client[:cut])
        self.to_client = self.to_client[cut:]
        assert not [event for event in events if isinstance(event, StreamFailed | Ignored | PeerHostile)]

    @invariant()
    def the_client_never_knows_fewer_streams_than_the_server_may_answer(self) -> None:
        known = self.client._streams.keys() | self.client._lingering.keys()
        assert self.server._streams.keys() <= known


TestTwoEnds = TwoEnds.TestCase
TestTwoEnds.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_encoded_ok_status_is_a_response_like_any_other() -> None:
    event = one(client_in(State.UNARY).receive(frame(Kind.RESPONSE, encode_response(Response(Status(0), b"p")))))
    assert event == ResponseReceived(1, Response(Status(0), b"p"))


def test_the_table_of_the_docs_is_the_table() -> None:
    lines = (Path(__file__).parents[2] / "docs" / "ttrpc.md").read_text().splitlines()
    table = [
        f"| {role.name} | {state.name} | {kind.name} | {after.name} |"
        for (role, state, kind), after in TRANSITIONS.items()
    ]
    begin = lines.index("| sender | state | frame | becomes |") + 2
    assert lines[begin : begin + len(table)] == table
    assert lines[begin + len(table)] == ""
