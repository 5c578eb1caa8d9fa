"""A pod's unit that is to name another launcher."""

import subprocess

import pytest

from kata_shimd.cli import units
from kata_shimd.errors import HostFailed

TEXT = """\
[Unit]
Description=Kata pod k8s.io/"x" unit
[Service]
Slice=kata.slice
ExecStart=
ExecStart="/opt/a \\"b\\"/shim" unit "/run/k/pods/1"
ExecStopPost=
ExecStopPost="/opt/a \\"b\\"/shim" unit-ended "/run/k/pods/1"
"""


@pytest.fixture
def reloads(monkeypatch):
    """What systemctl was asked for; ``status`` is its answer."""
    asked, status = [], [0]

    def run(words, **_how):
        asked.append(words)
        return subprocess.CompletedProcess(words, status[0], "", "no such bus\n")

    monkeypatch.setattr(units.subprocess, "run", run)
    return asked, status


@pytest.fixture
def drop_in(tmp_path):
    path = tmp_path / "kata-pod@1.service.d/50-pod.conf"
    path.parent.mkdir()
    path.write_text(TEXT)
    return path


def test_both_commands_name_the_new_launcher_and_nothing_else_changes(tmp_path, drop_in, reloads):
    units.follow(["1", "2"], "/opt/100%/$x/shim", tmp_path)
    assert drop_in.read_text() == TEXT.replace('"/opt/a \\"b\\"/shim"', '"/opt/100%%/$$x/shim"')
    assert [path.name for path in drop_in.parent.iterdir()] == [drop_in.name]
    assert reloads[0] == [["systemctl", "daemon-reload"]]


def test_where_nothing_changes_systemd_is_left_alone(tmp_path, drop_in, reloads):
    units.follow(["1"], '/opt/a "b"/shim', tmp_path)
    units.follow(["2"], "/shim", tmp_path)
    assert drop_in.read_text() == TEXT
    assert reloads[0] == []


def test_a_systemd_that_does_not_read_it_is_told_of(tmp_path, drop_in, reloads):
    reloads[1][0] = 1
    with pytest.raises(HostFailed, match="move unit: systemctl daemon-reload: no such bus; run it"):
        units.follow(["1"], "/shim", tmp_path)
