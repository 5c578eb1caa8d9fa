"""Lines of keys, and what counts as one value."""

import pytest

from kata_shimd.config import layers


@pytest.mark.parametrize(
    ("text", "path", "line"),
    [
        ("[runtime]\n\nenable_debug = true", ("runtime", "enable_debug"), 3),
        ("# x\nruntime.enable_debug = true", ("runtime", "enable_debug"), 2),
        ('["hypervisor" . \'qemu\']\r\n  "path" = 1\r\n', ("hypervisor", "qemu", "path"), 2),
        ("[a]\nx = 1\n[b]\nx = 1", ("b", "x"), 4),
        ("[runtime]", ("runtime",), 1),
    ],
)
def test_key_lines(text, path, line):
    assert layers.key_lines(text)[path] == line


def test_key_lines_passes_over_very_long_lines():
    assert layers.key_lines("a" * 100_000 + " = 1\nb = 1") == {("b",): 2}


def test_leaves_go_as_deep_as_known_tables_and_no_deeper():
    tree = {"hypervisor": {"qemu": {"path": "/x"}, "clh": {"path": "/y"}}, "other": {"a": {"b": 1}}, "runtime": 3}
    assert dict(layers.leaves(tree)) == {
        ("hypervisor", "qemu", "path"): "/x",
        ("hypervisor", "clh"): {"path": "/y"},
        ("other",): {"a": {"b": 1}},
        ("runtime",): 3,
    }


def test_too_many_drop_ins_are_a_problem(tmp_path):
    (tmp_path / "c.toml").write_text("")
    (tmp_path / "config.d").mkdir()
    for number in range(layers.MAX_DROP_INS + 1):
        (tmp_path / "config.d" / str(number)).write_text("")
    read = layers.read(tmp_path / "c.toml", b"")
    assert [problem.what for problem in read.problems] == ["more than 256 files"]
    assert len(read.files) == layers.MAX_DROP_INS + 1


def test_a_file_in_place_of_the_drop_in_directory_is_none(tmp_path):
    (tmp_path / "c.toml").write_text("")
    (tmp_path / "config.d").write_text("")
    assert layers.read(tmp_path / "c.toml", b"").problems == []
