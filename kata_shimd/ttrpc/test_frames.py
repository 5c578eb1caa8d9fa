"""The decoder: the same frames however the bytes arrive, and no memory for what has not."""

import sys

from hypothesis import given
from hypothesis import strategies as st

from .frames import HEADER, MAX_DATA, Frame, FrameDecoder, Oversize, pack

SMALL_LIMIT = 32

frames = st.builds(
    Frame,
    stream=st.integers(0, 2**32 - 1),
    type=st.integers(0, 255),
    flags=st.integers(0, 255),
    data=st.binary(max_size=2 * SMALL_LIMIT),
)


def seen(frame: Frame) -> Frame | Oversize:
    if len(frame.data) > SMALL_LIMIT:
        return Oversize(frame.stream, frame.type, frame.flags, len(frame.data))
    return frame


def test_header_layout() -> None:
    """containerd.md §3.1: length, stream id, type, flags, big endian."""
    assert pack(0x01020304, 2, 5, b"abc") == bytes.fromhex("00000003 01020304 02 05") + b"abc"


@given(st.lists(frames, max_size=4))
def test_split_at_every_byte_the_frames_are_the_same(sent: list[Frame]) -> None:
    data = b"".join(pack(*frame) for frame in sent)
    for cut in range(len(data) + 1):
        decoder = FrameDecoder(SMALL_LIMIT)
        assert decoder.feed(data[:cut]) + decoder.feed(data[cut:]) == [seen(frame) for frame in sent]
        assert (decoder.position, decoder.missing) == (len(data), 0)


@given(st.lists(frames, max_size=4))
def test_byte_by_byte_the_frames_are_the_same(sent: list[Frame]) -> None:
    decoder = FrameDecoder(SMALL_LIMIT)
    data = b"".join(pack(*frame) for frame in sent)
    got = [frame for at in range(len(data)) for frame in decoder.feed(data[at : at + 1])]
    assert got == [seen(frame) for frame in sent]


def test_largest_frame_passes_and_one_more_byte_does_not() -> None:
    decoder = FrameDecoder()
    assert decoder.feed(pack(1, 1, 0, bytes(MAX_DATA))) == [Frame(1, 1, 0, bytes(MAX_DATA))]
    after = pack(3, 1, 0, b"next")
    data = pack(1, 1, 0, bytes(MAX_DATA + 1)) + after
    assert decoder.feed(data) == [Oversize(1, 1, 0, MAX_DATA + 1), Frame(3, 1, 0, b"next")]


def test_oversize_is_reported_before_its_data_comes_and_the_data_is_not_kept() -> None:
    decoder = FrameDecoder()
    assert decoder.feed(HEADER.pack(2**32 - 1, 1, 1, 0)) == [Oversize(1, 1, 0, 2**32 - 1)]
    for _ in range(100):
        assert decoder.feed(bytes(1 << 16)) == []
    assert sys.getsizeof(decoder._tail) < 1 << 10
    assert decoder.missing == 2**32 - 1 - (100 << 16)


def test_announced_data_costs_nothing_until_it_comes() -> None:
    decoder = FrameDecoder()
    decoder.feed(HEADER.pack(MAX_DATA, 1, 1, 0))
    assert sys.getsizeof(decoder._tail) < 1 << 10
    assert decoder.missing == MAX_DATA


def test_half_a_header_is_missing_the_other_half() -> None:
    decoder = FrameDecoder()
    assert decoder.feed(b"\0\0\0") == []
    assert (decoder.missing, decoder.position) == (7, 0)
