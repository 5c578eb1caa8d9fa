"""The archive is read back by a reader of its own, and by the ``cpio`` rules the kernel applies."""

import stat

from kata_shimd.image.cpio import BLOCK, Entry, archive, member


def read(data):
    """(name, mode, device, content) of every member up to the trailer."""
    at, members = 0, []
    while True:
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        name_at = at + 110
        name = data[name_at : name_at + fields[11] - 1].decode()
        content_at = (name_at + fields[11] + 3) & ~3
        content = data[content_at : content_at + fields[6]]
        if name == "TRAILER!!!":
            assert not data[content_at:].strip(b"\0")
            return members
        members.append((name, fields[1], (fields[9], fields[10]), content))
        at = (content_at + fields[6] + 3) & ~3


ENTRIES = [
    Entry.directory("dev"),
    Entry.character_device("dev/console", 5, 1),
    Entry.file("init", b"\x7fELF", 0o755),
    Entry.file("odd", b"12345"),
    Entry.file("empty", b""),
]


def test_members_come_back_as_they_were_given():
    assert read(archive(ENTRIES)) == [
        ("dev", stat.S_IFDIR | 0o755, (0, 0), b""),
        ("dev/console", stat.S_IFCHR | 0o600, (5, 1), b""),
        ("init", stat.S_IFREG | 0o755, (0, 0), b"\x7fELF"),
        ("odd", stat.S_IFREG | 0o644, (0, 0), b"12345"),
        ("empty", stat.S_IFREG | 0o644, (0, 0), b""),
    ]


def test_equal_entries_make_equal_archives_of_whole_blocks():
    data = archive(ENTRIES)
    assert data == archive(list(ENTRIES))
    assert len(data) % BLOCK == 0


def test_header_has_no_time_and_no_owner():
    header = member(Entry.file("f", b"x"), 9)
    fields = [int(header[6 + 8 * n : 14 + 8 * n], 16) for n in range(13)]
    inode, _, uid, gid, links, mtime, size = fields[:7]
    assert (inode, uid, gid, links, mtime, size) == (9, 0, 0, 1, 0, 1)
