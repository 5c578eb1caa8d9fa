"""What a pod was configured with stays what it is configured with."""

from pathlib import Path

import pytest

from kata_shimd.config import record
from kata_shimd.config.load import Loaded, load
from kata_shimd.errors import HostFailed


def loaded(tmp_path: Path, **more: object) -> Loaded:
    return load(tmp_path / "configuration.toml", b"[shimd]\nkeeper_deaths = 7\n", None, {}, **more)  # type: ignore[arg-type]


@pytest.fixture
def born(tmp_path: Path) -> Loaded:
    (tmp_path / "configuration.toml").write_text('[shimd]\nkeeper = "launcher"\n')
    (tmp_path / "config.d").mkdir()
    (tmp_path / "config.d/10.toml").write_text("[shimd]\nkeeper_seconds = 99\n")
    return loaded(tmp_path)


def test_it_is_the_same_after_the_files_have_changed(tmp_path: Path, born: Loaded) -> None:
    record.write(tmp_path, born.contents)
    (tmp_path / "configuration.toml").write_text("[[ nonsense")
    (tmp_path / "config.d/10.toml").unlink()
    again = loaded(tmp_path, recorded=record.read(tmp_path))
    assert again == born


def test_a_record_is_written_once(tmp_path: Path, born: Loaded) -> None:
    record.write(tmp_path, born.contents)
    record.write(tmp_path, ())
    assert record.read(tmp_path) == born.contents
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.d", record.NAME, "configuration.toml"]
    assert (tmp_path / record.NAME).stat().st_mode & 0o777 == 0o600


def test_a_pod_without_a_file_stays_without(tmp_path: Path) -> None:
    record.write(tmp_path, ())
    assert record.read(tmp_path) == ()


def test_nothing_on_record(tmp_path: Path) -> None:
    assert record.read(tmp_path) is None
    (tmp_path / record.NAME).write_text('{"format": 9}')
    assert record.read(tmp_path) is None


@pytest.mark.parametrize("text", ["", "[]", '{"format": 1}', '{"format": 1, "files": [["/a", "nowhere", ""]]}', "\0"])
def test_a_record_that_is_spoilt_is_said(tmp_path: Path, text: str) -> None:
    (tmp_path / record.NAME).write_text(text)
    with pytest.raises(HostFailed, match="read configuration of pod"):
        record.read(tmp_path)


def test_a_record_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(HostFailed, match="record configuration"):
        record.write(tmp_path / "gone", ())
