"""Reads the few things of a 64-bit little-endian ELF file that a guest builder asks for: sections, notes, needed libraries.

The files come out of signed packages, but a truncated one must still be an error, not a wrong image.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kata_shimd.errors import HostFailed

MAGIC = b"\x7fELF\x02\x01"
PT_DYNAMIC, PT_INTERP = 2, 3
DT_NEEDED, DT_STRTAB, DT_SONAME = 1, 5, 14
SHT_NOBITS = 8

HEADER = struct.Struct("<16xHHIQQQIHHHHHH")
SEGMENT = struct.Struct("<IIQQQQQQ")
SECTION = struct.Struct("<IIQQQQIIQQ")
DYNAMIC = struct.Struct("<QQ")


@dataclass(frozen=True, slots=True)
class Linkage:
    """What a program asks of the dynamic linker. ``interpreter`` is its absolute path, "" for a static program."""

    interpreter: str
    needed: tuple[str, ...]


def is_elf(data: bytes) -> bool:
    return data.startswith(MAGIC)


def linkage(data: bytes, path: Path) -> Linkage:
    """What the program or library at ``path`` (only named in errors) needs at run time."""
    try:
        segments = list(_segments(data))
        interpreter = next((_bytes(data, offset, size) for kind, offset, _, size in segments if kind == PT_INTERP), b"")
        dynamic = next((_bytes(data, offset, size) for kind, offset, _, size in segments if kind == PT_DYNAMIC), b"")
        return Linkage(interpreter.rstrip(b"\0").decode(), tuple(_needed(data, dynamic, segments)))
    except (struct.error, ValueError) as error:
        raise HostFailed("read program", str(path), f"not a whole 64-bit ELF file ({error})") from error


def section(data: bytes, name: bytes, path: Path) -> bytes:
    """The section's content, empty when there is none."""
    try:
        header = HEADER.unpack_from(data)
        offset, size, count, names_index = header[5], header[10], header[11], header[12]
        table = [SECTION.unpack_from(data, offset + index * size) for index in range(count)]
        names = _bytes(data, table[names_index][4], table[names_index][5])
        for row in table:
            if _string(names, row[0]) == name and row[1] != SHT_NOBITS:
                return _bytes(data, row[4], row[5])
    except (struct.error, ValueError, IndexError) as error:
        raise HostFailed("read module", str(path), f"not a whole 64-bit ELF file ({error})") from error
    return b""


def _segments(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """(type, file offset, address, file size) of each program header."""
    header = HEADER.unpack_from(data)
    offset, size, count = header[4], header[8], header[9]
    for index in range(count):
        kind, _, at, address, _, length, _, _ = SEGMENT.unpack_from(data, offset + index * size)
        yield kind, at, address, length


def _needed(data: bytes, dynamic: bytes, segments: list[tuple[int, int, int, int]]) -> Iterator[str]:
    entries = list(DYNAMIC.iter_unpack(dynamic[: len(dynamic) // DYNAMIC.size * DYNAMIC.size]))
    strings = next((value for tag, value in entries if tag == DT_STRTAB), None)
    if strings is None:
        return
    offset = _file_offset(strings, segments)
    for tag, value in entries:
        if tag == DT_NEEDED:
            yield _string(data, offset + value).decode()


def _file_offset(address: int, segments: list[tuple[int, int, int, int]]) -> int:
    for _, offset, start, size in segments:
        if start <= address < start + size:
            return offset + address - start
    raise ValueError(f"address {address:#x} is in no segment")


def _bytes(data: bytes, offset: int, size: int) -> bytes:
    if offset + size > len(data):
        raise ValueError("cut short")
    return data[offset : offset + size]


def _string(data: bytes, offset: int) -> bytes:
    return data[offset : data.index(b"\0", offset)]
