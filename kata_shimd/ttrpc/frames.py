"""ttrpc frames: a ten-byte header, then at most 4 MiB of data.

Owns where one frame ends and the next begins, and nothing else: what a frame means is `protocol`'s business. A frame
that declares more than the limit is reported once and its data is thrown away as it arrives, byte for byte, so that
the connection stays in step. What must never happen: memory taken for bytes that a peer has announced but not sent.

Layout and limit: containerd.md §3.1.
"""

import struct
from typing import Final, NamedTuple

MAX_DATA: Final = 4 << 20

REQUEST: Final = 1
RESPONSE: Final = 2
DATA: Final = 3

REMOTE_CLOSED: Final = 0x01
REMOTE_OPEN: Final = 0x02
NO_DATA: Final = 0x04

#: data length (bytes 0-4), stream id (4-8), type (8), flags (9); big endian
HEADER: Final = struct.Struct(">IIBB")


class Frame(NamedTuple):
    """One whole frame."""

    stream: int
    type: int
    flags: int
    data: bytes


class Oversize(NamedTuple):
    """The header of a frame whose data is longer than we take; the data is being discarded."""

    stream: int
    type: int
    flags: int
    length: int


def pack(stream: int, type_: int, flags: int, data: bytes) -> bytes:
    """The bytes of one frame. ``data`` is at most `MAX_DATA` long; the caller has seen to that."""
    return HEADER.pack(len(data), stream, type_, flags) + data


class FrameDecoder:
    """Cuts a byte stream into frames, however the bytes are split on arrival.

    ``position`` counts the bytes of the stream that are done with (whole frames, headers of oversize frames, discarded
    data): the point from which a successor would have to go on.
    """

    __slots__ = ("_max", "_need", "_skip", "_tail", "position")

    def __init__(self, max_data: int = MAX_DATA) -> None:
        self._max = max_data
        self._tail = bytearray()  # the beginning of a frame that is not complete
        self._need = 0  # how long _tail must be before it is worth a look
        self._skip = 0  # bytes of an oversize frame still to be thrown away
        self.position = 0

    @property
    def missing(self) -> int:
        """How many bytes the frame that has begun still lacks, as far as is known; 0 between two frames."""
        return self._skip or (self._need - len(self._tail) if self._tail else 0)

    def feed(self, data: bytes) -> list[Frame | Oversize]:
        """Take what arrived; return the frames it completes, in order."""
        if self._tail:
            self._tail += data
            if len(self._tail) < self._need:
                return []
            data = bytes(self._tail)
            self._tail.clear()
        return self._cut(data)

    def _cut(self, data: bytes) -> list[Frame | Oversize]:
        found: list[Frame | Oversize] = []
        end = len(data)
        at = self._discard(end)
        while end - at >= HEADER.size:
            length, stream, type_, flags = HEADER.unpack_from(data, at)
            start = at + HEADER.size
            if length > self._max:
                found.append(Oversize(stream, type_, flags, length))
                self._skip = length
                at = start + self._discard(end - start)
            elif start + length <= end:
                at = start + length
                found.append(Frame(stream, type_, flags, data[start:at]))
            else:
                break
        self._keep(data, at)
        return found

    def _discard(self, available: int) -> int:
        step = min(self._skip, available)
        self._skip -= step
        return step

    def _keep(self, data: bytes, at: int) -> None:
        self.position += at
        left = len(data) - at
        if left:
            self._tail += memoryview(data)[at:] if at else data
            self._need = HEADER.size if left < HEADER.size else HEADER.size + HEADER.unpack_from(data, at)[0]
