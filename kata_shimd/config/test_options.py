"""What is taken from containerd's options, and what is let pass."""

from pathlib import Path

import pytest

from kata_shimd.config.options import IGNORED, RUNTIME_OPTIONS, ConfigSource, pick
from kata_shimd.errors import InvalidArgument


def never(value):
    raise AssertionError("must not be decoded")


@pytest.mark.parametrize("prefix", ["", "type.googleapis.com/"])
@pytest.mark.parametrize("name", sorted(RUNTIME_OPTIONS))
def test_runtime_options_give_path_and_body(prefix, name):
    source = pick(prefix + name, b"x", lambda value: ("/etc/kata.toml", b"body " + value))
    assert source == ConfigSource(config_path=Path("/etc/kata.toml"), config_body=b"body x")


def test_empty_path_is_no_path():
    assert pick("runtimeoptions.v1.Options", b"", lambda value: ("", b"")) == ConfigSource()


@pytest.mark.parametrize("name", ["", *sorted(IGNORED)])
def test_runc_options_and_none_are_ignored_without_a_look(name):
    assert pick(name, b"\xff", never) == ConfigSource()


def test_unknown_type_is_a_warning():
    source = pick("some.other.Options", b"\xff", never)
    assert source.config_path is None
    assert source.warnings == ("runtime options: some.other.Options: unknown type, ignored",)


@pytest.mark.parametrize("error", [ValueError("field 2 is cut off"), InvalidArgument("decode", "Options", "cut off")])
def test_broken_bytes_are_refused(error):
    def decode(value):
        raise error

    with pytest.raises(InvalidArgument, match=r"runtimeoptions\.v1\.Options: .*cut off"):
        pick("runtimeoptions.v1.Options", b"\xff", decode)


def test_path_with_a_nul_is_refused():
    with pytest.raises(InvalidArgument, match="NUL"):
        pick("runtimeoptions.v1.Options", b"", lambda value: ("/a\0b", b""))
