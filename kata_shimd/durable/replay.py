"""What a daemon that died still owes: from all that was received and all that was to be sent. Pure."""

from typing import Final, NamedTuple

from kata_shimd.ttrpc.frames import DATA, HEADER, MAX_DATA, REQUEST, RESPONSE

_CLOSED: Final = 0x01


class Owed(NamedTuple):
    """``frames``: requests without an answer, and their data, as they came; ``tail``: the beginning of a frame."""

    frames: tuple[bytes, ...]
    tail: bytes


class Raw(NamedTuple):
    """One whole frame, header and all."""

    stream: int
    kind: int
    flags: int
    raw: bytes


def owed(received: bytes, sent: bytes) -> Owed:
    """Which frames of ``received`` have no final answer in ``sent``. A request that stands there twice is one."""
    answered = {stream for stream, kind, flags, _ in frames_of(sent)[0] if _is_final(kind, flags)}
    frames, tail = frames_of(received)
    open_streams: set[int] = set()
    kept: list[bytes] = []
    for stream, kind, _, raw in frames:
        if stream in answered:
            continue
        if kind == REQUEST and stream not in open_streams:
            open_streams.add(stream)
            kept.append(raw)
        elif kind == DATA and stream in open_streams:
            kept.append(raw)
    return Owed(tuple(kept), tail)


def _is_final(kind: int, flags: int) -> bool:
    return kind == RESPONSE or (kind == DATA and bool(flags & _CLOSED))


def frames_of(data: bytes) -> tuple[list[Raw], bytes]:
    """Every whole frame, and what follows the last. One that is too large to be taken is passed over."""
    found = []
    at = 0
    while len(data) - at >= HEADER.size:
        length, stream, kind, flags = HEADER.unpack_from(data, at)
        end = at + HEADER.size + length
        if end > len(data):
            break
        if length <= MAX_DATA:
            found.append(Raw(stream, kind, flags, data[at:end]))
        at = end
    return found, data[at:]
