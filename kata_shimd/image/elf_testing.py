"""Makes small ELF files for tests: just the tables that ``elf`` reads."""

from kata_shimd.image.elf import (
    DT_NEEDED,
    DT_STRTAB,
    DYNAMIC,
    HEADER,
    MAGIC,
    PT_DYNAMIC,
    PT_INTERP,
    SECTION,
    SEGMENT,
)

ADDRESS = 0x400000
PT_LOAD = 1


def module(modinfo: bytes) -> bytes:
    """A relocatable file with a ``.modinfo`` section."""
    names = b"\0.modinfo\0.shstrtab\0"
    body = modinfo + names
    table = HEADER.size + len(body)
    rows = [(0, 0, 0), (1, HEADER.size, len(modinfo)), (10, HEADER.size + len(modinfo), len(names))]
    sections = b"".join(SECTION.pack(name, 1, 0, 0, at, size, 0, 0, 1, 0) for name, at, size in rows)
    header = _header(1, 62, 1, 0, 0, table, 0, HEADER.size, 0, 0, SECTION.size, len(rows), 2)
    return header + body + sections


def program(interpreter: str, needed: list[str]) -> bytes:
    """An executable that needs libraries; one loaded segment covers the whole file."""
    count = 3 if interpreter else 2
    strings = b"\0" + b"".join(name.encode() + b"\0" for name in needed)
    interp = interpreter.encode() + b"\0"
    interp_at = HEADER.size + count * SEGMENT.size
    strings_at = interp_at + len(interp)
    dynamic_at = strings_at + len(strings)
    entries = [(DT_STRTAB, ADDRESS + strings_at)]
    entries += [(DT_NEEDED, strings.index(b"\0" + name.encode() + b"\0") + 1) for name in needed]
    dynamic = b"".join(DYNAMIC.pack(*entry) for entry in [*entries, (0, 0)])
    size = dynamic_at + len(dynamic)
    segments = [(PT_LOAD, 0, size), (PT_DYNAMIC, dynamic_at, len(dynamic))]
    segments += [(PT_INTERP, interp_at, len(interp))] if interpreter else []
    table = b"".join(SEGMENT.pack(kind, 4, at, ADDRESS + at, 0, length, length, 1) for kind, at, length in segments)
    header = _header(2, 62, 1, ADDRESS, HEADER.size, 0, 0, HEADER.size, SEGMENT.size, count, 0, 0, 0)
    return header + table + interp + strings + dynamic


def _header(*fields: int) -> bytes:
    return MAGIC + HEADER.pack(*fields)[len(MAGIC) :]
