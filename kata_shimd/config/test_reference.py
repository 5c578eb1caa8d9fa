"""The page in docs is the one the tables give, and the tables say only what the program does."""

from pathlib import Path

from kata_shimd.config import reference, usage
from kata_shimd.config.keys import BY_ANNOTATION, BY_DOTTED, KEYS, LONE

ROOT = Path(__file__).parents[2]


def test_committed_page_is_what_the_tables_give():
    assert (ROOT / "docs" / "configuration.md").read_text() == reference.page(), (
        "run python -m kata_shimd.config.reference"
    )


def test_page_has_every_key_and_annotation():
    page = reference.page()
    for name in [
        *(f"| `{key.name}` |" for key in KEYS),
        *(f"`{name}`" for name in BY_ANNOTATION),
        *(f"`{lone.name}`" for lone in LONE),
    ]:
        assert name in page, name


def test_rows_of_the_page_are_whole():
    rows = [line for line in reference.page().splitlines() if line.startswith("| `")]
    assert all(row.count("|") in (3, 4, 5, 7) for row in rows), [
        row for row in rows if row.count("|") not in (3, 4, 5, 7)
    ]


def test_names_are_unique():
    assert len(BY_DOTTED) == len(KEYS)
    assert len(BY_ANNOTATION) == sum(len(key.annotations) for key in KEYS)


def test_unread_finds_what_no_code_reads(tmp_path):
    (tmp_path / "config").mkdir()
    (tmp_path / "api").mkdir()
    (tmp_path / "vm").mkdir()
    (tmp_path / "config" / "a.py").write_text("c.hypervisor.memory_slots")
    (tmp_path / "api" / "a.py").write_text("c.hypervisor.memory_slots")
    (tmp_path / "vm" / "test_a.py").write_text("c.hypervisor.memory_slots")
    (tmp_path / "vm" / "a.py").write_text(
        "hypervisor.default_memory_mib\nhypervisor.memory_slots = 1\nvm.memory_slots\n"
    )
    unread = usage.unread(tmp_path)
    assert "hypervisor.qemu.memory_slots" in unread
    assert "hypervisor.qemu.default_memory" not in unread
    assert "hypervisor.qemu.enable_annotations" not in unread  # read by configuration itself
