"""Single values: what is taken, what is refused, and that writing one gives it back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata_shimd.config import kinds
from kata_shimd.config.key import ABSENT
from kata_shimd.config.keys import KEYS


@pytest.mark.parametrize("text", ["1", "t", "T", "TRUE", "true", "True"])
def test_go_bool_takes_what_go_takes_for_true(text):
    assert kinds.go_bool(text) is True


@pytest.mark.parametrize("text", ["0", "f", "F", "FALSE", "false", "False"])
def test_go_bool_takes_what_go_takes_for_false(text):
    assert kinds.go_bool(text) is False


@pytest.mark.parametrize("text", ["", "yes", "on", "tRUE", " true", "2", "no", "none"])
def test_go_bool_refuses_the_rest(text):
    with pytest.raises(ValueError, match="not a boolean"):
        kinds.go_bool(text)


@pytest.mark.parametrize("text", ["", "-1", "+1", " 1", "1_000", "0x10", "1.0", "٣", str(2**64), "9" * 50])
def test_go_uint_refuses_what_is_no_decimal_64_bit_number(text):
    with pytest.raises(ValueError, match="not an unsigned integer"):
        kinds.go_uint(text)


def test_go_uint_takes_the_largest_64_bit_number():
    assert kinds.go_uint(str(2**64 - 1)) == 2**64 - 1


@pytest.mark.parametrize("text", ["", "nan", "inf", "1e400", "0x1p4", "1,5", "--1"])
def test_go_float_refuses_what_is_no_plain_number(text):
    with pytest.raises(ValueError, match="not a number"):
        kinds.go_float(text)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (kinds.UINT, True),
        (kinds.UINT, 1.0),
        (kinds.UINT, -1),
        (kinds.UINT, 2**32),
        (kinds.BOOL, 1),
        (kinds.BOOL, "true"),
        (kinds.STR, 1),
        (kinds.STR, "a\nb"),
        (kinds.STR, "a\0b"),
        (kinds.STR, "a\ud800"),
        (kinds.STR, "a" * (kinds.MAX_TEXT + 1)),
        (kinds.PATH, "relative"),
        (kinds.PATH, ""),
        (kinds.STRINGS, "a"),
        (kinds.STRINGS, ["a", 1]),
        (kinds.SECONDS, 0),
        (kinds.SECONDS, float("nan")),
        (kinds.SECONDS, float("inf")),
        (kinds.SECONDS, kinds.MAX_SECONDS + 1),
        (kinds.REGEXES, ["("]),
        (kinds.READ_ONLY_PATHS, ["/a:rw"]),
        (kinds.TABLES, [1]),
        (kinds.between(2, 1024, power_of_two=True), 1000),
    ],
)
def test_parse_refuses_what_is_not_of_the_kind(kind, value):
    with pytest.raises(ValueError, match=r"."):
        kind.parse(value)


def test_read_only_paths_take_the_suffix_of_runtime_rs():
    assert [str(path) for path in kinds.READ_ONLY_PATHS.parse(["/a:ro", "/b"])] == ["/a", "/b"]


def test_compile_pattern_does_not_warn_of_what_go_writes_differently():
    assert kinds.compile_pattern("[[a]").pattern == "[[a]"


def test_semicolons_split_kernel_modules_with_their_parameters():
    assert kinds.semicolons("e1000e InterruptThrottleRate=3000 EEE=1; i915 ;;") == [
        "e1000e InterruptThrottleRate=3000 EEE=1",
        "i915",
    ]


@pytest.mark.parametrize("text", ["", "a", "{}", '["a", 1]', "[" * 100_000, '["a\\u0000"]'])
def test_json_strings_refuses_what_is_no_array_of_strings(text):
    with pytest.raises(ValueError, match=r"."):
        kinds.json_strings(text)


@pytest.mark.parametrize(
    ("path", "globs", "allowed"),
    [
        ("/opt/qemu/bin/qemu", ("/opt/*/bin/qemu",), True),
        ("/opt/a/b/bin/qemu", ("/opt/*/bin/qemu",), False),  # * does not cross a slash
        ("/opt/qemu", ("/opt/qemu", "/x"), True),
        ("/opt/../bin/sh", ("/opt/*/*/*", "/opt/../bin/sh"), False),
        ("/opt//qemu", ("/opt/qemu",), False),
        ("opt/qemu", ("opt/qemu",), False),
        ("/opt/qemu", (), False),
        ("/opt/qemu", ("",), False),
    ],
)
def test_path_in_globs(path, globs, allowed):
    assert kinds.path_in_globs(path, globs) is allowed


@pytest.mark.parametrize("key", [key for key in KEYS if key.default is not ABSENT], ids=lambda key: key.dotted)
def test_dump_gives_back_every_default(key):
    value = key.kind.parse(key.default)
    assert key.kind.parse(key.kind.dump(value)) == value


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=5))
def test_parse_raises_only_value_error(value):
    for key in KEYS:
        try:
            key.kind.parse(value)
        except ValueError as error:
            assert str(error)


@given(st.text())
def test_annotation_text_raises_only_value_error(text):
    for key in KEYS:
        for note in key.annotations:
            try:
                note.text(text)
            except ValueError as error:
                assert str(error)
