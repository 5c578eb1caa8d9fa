import pytest

from kata_shimd.errors import HostFailed, NotFound
from kata_shimd.image import tool


def test_a_missing_program_names_its_package(monkeypatch):
    monkeypatch.setitem(tool.ENVIRONMENT, "PATH", "/nonexistent")
    with pytest.raises(NotFound, match="find program: mksquashfs: not installed; apt-get install squashfs-tools"):
        tool.run("make root image", "x", ["mksquashfs", "-version"])


def test_a_failed_program_tells_its_last_words():
    with pytest.raises(HostFailed, match=r"make it: thing: ls exited with 2 / .*no-such-file.*; try harder") as caught:
        tool.run("make it", "thing", ["ls", "/no-such-file"], hint="try harder")
    assert caught.value.obj == "thing"


def test_an_expected_exit_code_is_no_failure():
    assert tool.run("look", "thing", ["cat", "-", "/no-such-file"], data=b"found", codes=(0, 1)) == b"found"


def test_the_environment_is_ours(monkeypatch):
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    monkeypatch.setenv("SECRET", "x")
    said = tool.run("look", "environment", ["env"]).decode().split()
    assert "LC_ALL=C.UTF-8" in said
    assert not any(line.startswith("SECRET") for line in said)
