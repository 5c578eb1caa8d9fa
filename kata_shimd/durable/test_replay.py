"""What is owed, from two streams of frames."""

from kata_shimd.durable.replay import Owed, owed
from kata_shimd.ttrpc.frames import DATA, HEADER, MAX_DATA, REQUEST, RESPONSE, pack

ONE, THREE = pack(1, REQUEST, 0, b"one"), pack(3, REQUEST, 0, b"three")


def test_nothing_is_owed_for_nothing():
    assert owed(b"", b"") == Owed((), b"")


def test_a_request_is_owed_until_it_is_answered():
    assert owed(ONE + THREE, b"") == Owed((ONE, THREE), b"")
    assert owed(ONE + THREE, pack(1, RESPONSE, 0, b"")) == Owed((THREE,), b"")


def test_one_that_was_carried_over_and_not_yet_forgotten_is_owed_once():
    assert owed(ONE + THREE + ONE, b"") == Owed((ONE, THREE), b"")


def test_the_beginning_of_a_frame_is_handed_on():
    assert owed(ONE + THREE[:12], b"") == Owed((ONE,), THREE[:12])
    assert owed(THREE[:3], b"") == Owed((), THREE[:3])


def test_data_goes_with_its_stream():
    data = pack(3, DATA, 0, b"more")
    assert owed(ONE + THREE + data, b"").frames == (ONE, THREE, data)
    assert owed(ONE + THREE + data, pack(3, DATA, 1, b"")).frames == (ONE,)
    assert owed(data, b"").frames == ()


def test_a_frame_beyond_the_limit_is_passed_over():
    large = HEADER.pack(MAX_DATA + 1, 1, REQUEST, 0) + bytes(MAX_DATA + 1)
    assert owed(large + THREE, b"") == Owed((THREE,), b"")
