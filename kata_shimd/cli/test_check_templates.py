"""What `kata-shimd check` says of templates: whether pods are cloned, and what they are booted for where they are not."""

import os
from types import SimpleNamespace
from typing import cast

import pytest

from kata_shimd.cli.check_templates import templates
from kata_shimd.config.load import examine
from kata_shimd.debug.check import Scene, Verdict
from kata_shimd.vm.template import memory, store
from kata_shimd.vm.template.store import Store


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Where templates would lie; on a tmpfs of 1000 MiB, of which 600 are free."""
    monkeypatch.setattr(store, "_filesystem", lambda path: "tmpfs")
    monkeypatch.setattr(Store, "room", lambda self: (600 << 20, 1000 << 20))
    for name in ("vmlinuz", "initrd.img", "rootfs.img"):
        (tmp_path / name).touch()
    return tmp_path / "templates"


def row(place, factory="", shimd=""):
    body = f'[factory]\ntemplate_path = "{place}"\n{factory}\n[shimd]\nguest_dir = "{place.parent}"\n{shimd}\n'
    config = examine(None, body.encode(), None, {}, search=())
    (answer,) = templates(cast(Scene, SimpleNamespace(config=config)))
    return answer


def test_before_the_first_pod_and_after(place):
    answer = row(place)
    assert answer.verdict is Verdict.PASS and "pods are cloned: 0 at" in answer.why and "600 MiB are free" in answer.why
    assert "template build" in answer.fix
    assert not place.exists()
    ram = memory.new(memory.PAGE)
    Store(place).begin()
    Store(place).publish("0123456789abcdef0123", {}, b"", ram)
    os.close(ram)
    assert "pods are cloned: 1 at" in row(place).why and not row(place).fix


@pytest.mark.parametrize(
    ("factory", "shimd", "why"),
    [
        ("enable_template = false", "", "factory.enable_template is off"),
        ("", 'agent_transport = "vsock"', "reached over vsock"),
    ],
)
def test_where_none_are_wanted(place, factory, shimd, why):
    answer = row(place, factory, shimd)
    assert answer.verdict is Verdict.SKIP and why in answer.why, answer


def test_where_they_would_crowd_out_others(place, monkeypatch):
    monkeypatch.setattr(Store, "room", lambda self: (300 << 20, 1000 << 20))
    answer = row(place)
    assert answer.verdict is Verdict.PASS and "300 are free" in answer.why and "template_path" in answer.fix, answer


def test_where_there_is_no_memory_to_lie_in(place, monkeypatch):
    monkeypatch.setattr(store, "_filesystem", lambda path: "ext4")
    answer = row(place)
    assert answer.verdict is Verdict.PASS and "it is on ext4: pods are booted" in answer.why and "tmpfs" in answer.fix


def test_where_others_may_write(place):
    place.mkdir()
    place.chmod(0o755)
    answer = row(place)
    assert answer.verdict is Verdict.PASS and "not ours alone: pods are booted" in answer.why and answer.fix, answer


def test_without_a_configuration():
    (answer,) = templates(cast(Scene, SimpleNamespace(config=SimpleNamespace(config=None))))
    assert answer.verdict is Verdict.SKIP
