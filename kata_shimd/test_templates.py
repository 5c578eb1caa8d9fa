"""Templates joined: what each trouble leads to, and that who undoes a pod undoes what it makes a template with."""

import asyncio
import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from kata_shimd import ledger as ledgers
from kata_shimd import templates
from kata_shimd.agent.client import Deadlines
from kata_shimd.errors import HostFailed, VmFailed
from kata_shimd.ledger import Kind, Ledger
from kata_shimd.templates import Site, Templates
from kata_shimd.vm.accel import Accelerator
from kata_shimd.vm.machine import Ground
from kata_shimd.vm.phases import Phases
from kata_shimd.vm.spec import Budgets, ShareSpec, Transport, VmSpec
from kata_shimd.vm.template import key, memory, store
from kata_shimd.vm.template.store import STATE, Store

PAGES = 4


class Notes(list):
    def __call__(self, event, **fields):
        self.append(event)

    write = __call__


class Scene:
    """Templates of which making and cloning are played, and everything else is real."""

    def __init__(self, tmp_path, monkeypatch):
        monkeypatch.setattr(store, "_filesystem", lambda _path: "tmpfs")
        (tmp_path / "file").write_text("x")
        file = tmp_path / "file"
        self.spec = VmSpec(
            name="pod", uuid="1", qemu=file, accelerator=Accelerator.TCG, kernel=file, initrd=file, image=file,
            share=ShareSpec(programs=()),
        )  # fmt: skip
        self.site = Site(
            path=tmp_path / "templates", run_dir=tmp_path, launcher=file, budgets=Budgets(), deadlines=Deadlines()
        )
        self.store, self.notes, self.made, self.trouble = Store(self.site.path), Notes(), 0, {}
        monkeypatch.setattr(Templates, "make", self._make)
        monkeypatch.setattr(Templates, "_clone", self._clone)

    async def _make(self, _templates, _spec=None, _ledger=None):
        if "make" in self.trouble:
            raise self.trouble["make"]
        self.made += 1
        ram = memory.new(PAGES * memory.PAGE)
        self.store.publish(self.key, {}, b"state", ram)
        os.close(ram)
        return 0

    async def _clone(self, *_):
        if "clone" in self.trouble:
            raise self.trouble["clone"]
        return SimpleNamespace(provisional=True)

    @property
    def key(self):
        return key.name(key.inputs(self.spec))

    async def pod(self, spec=None):
        """One pod's boot; whether it was cloned, and what its journal says."""
        self.notes.clear()
        made = Templates(self.site, None, self.notes)
        vm = await made.clone(spec or self.spec, Ground(Phases(self.notes)), None, None, None, None)
        assert vm is None or not vm.provisional
        return vm is not None, [note for note in self.notes if note != "boot-phase"]


@pytest.fixture
def scene(tmp_path, monkeypatch):
    return Scene(tmp_path, monkeypatch)


MADE = ["template-making", "template-made", "cloned"]


async def test_the_first_makes_it_and_others_use_it(scene):
    assert await scene.pod() == (True, MADE)
    assert await scene.pod() == (True, ["cloned"])
    assert scene.made == 1


async def test_one_that_is_bad_is_made_anew(scene):
    await scene.pod()
    (scene.site.path / scene.key / STATE).write_bytes(b"other")
    assert await scene.pod() == (True, ["template-refused", *MADE])


async def test_one_that_cannot_be_made_is_let_rest(scene):
    scene.trouble["make"] = HostFailed("write template", "", "No space left on device")
    assert await scene.pod() == (False, ["template-making", "template-failed"])
    scene.trouble.clear()
    assert await scene.pod() == (False, ["template-passed-over"])
    scene.store.forgive(scene.key)
    assert await scene.pod() == (True, MADE)


async def test_one_whose_clone_fails_is_removed_and_let_rest(scene):
    scene.trouble["clone"] = VmFailed("dial agent", "", "no answer")
    assert await scene.pod() == (False, ["template-making", "template-made", "clone-failed"])
    scene.trouble.clear()
    assert scene.store.find(scene.key) is None
    assert await scene.pod() == (False, ["template-passed-over"])


async def test_one_that_is_being_made_is_not_waited_for(scene):
    scene.store.begin()
    with scene.store.making(scene.key) as ours:
        assert ours
        assert await scene.pod() == (False, ["template-passed-over"])
    assert await scene.pod() == (True, MADE)


@pytest.mark.parametrize("change", [{"initrd": None}, {"transport": Transport.VSOCK}])
async def test_pods_that_can_have_none_are_booted(scene, change):
    assert await scene.pod(replace(scene.spec, **change)) == (False, ["template-passed-over"])
    assert scene.made == 0


async def test_a_place_that_is_none_is_said(scene, monkeypatch):
    monkeypatch.setattr(store, "_filesystem", lambda _path: "ext4")
    assert await scene.pod() == (False, ["template-failed"])


async def test_a_guest_that_is_gone_is_left_to_the_boot_to_tell(scene):
    scene.spec.image.unlink()
    assert await scene.pod() == (False, ["template-failed"])


# --- where it is made --------------------------------------------------------------------------------------------------


def laid_out(directory):
    directory.mkdir(parents=True)
    (directory / ledgers.NAME).write_text("")
    return Ledger(directory)


def live(directory):
    return [(record.kind, dict(record.fields)) for record in ledgers.read(directory).live.values()]


async def test_what_a_template_is_made_with_is_on_record_of_both(tmp_path, monkeypatch):
    undone = []

    async def undo(_launcher, directory):
        undone.append(directory.exists() and live(directory))

    monkeypatch.setattr(templates, "_undo", undo)
    pod = laid_out(tmp_path / "pods/pod")
    site = Site(path=tmp_path, run_dir=tmp_path, launcher=Path("/l"), budgets=Budgets(), deadlines=Deadlines())
    async with templates._stage(site, "key", pod) as (stage, journal):
        claim = stage.plan(Kind.FILE, path="/claim")
        stage.made(stage.plan(Kind.PROCESS, needs=(claim,), what="qemu"), pid=7, start=9)
        journal.write("x")
        assert live(stage.pod_dir) == [
            ("file", {"path": "/claim"}),
            ("process", {"what": "qemu", "pid": 7, "start": 9}),
        ]
        assert live(pod.pod_dir) == [
            ("dir", {"path": str(stage.pod_dir)}),
            ("file", {"path": "/claim"}),
            # A later daemon that looks for its own QEMU does not take this one for it.
            ("process", {"what": "template-qemu", "pid": 7, "start": 9}),
        ]
        opened = json.loads((stage.pod_dir / ledgers.NAME).read_text().splitlines()[0])
    assert (opened["namespace"], opened["id"]) == ("kata-shimd", "template-key")
    assert live(pod.pod_dir) == []
    assert undone[0] is False and len(undone[1]) == 2
    pod.close()


async def test_what_a_maker_that_died_has_left_is_undone_first(tmp_path, monkeypatch):
    site = Site(path=tmp_path, run_dir=tmp_path, launcher=Path("/bin/false"), budgets=Budgets(), deadlines=Deadlines())
    async with templates._stage(replace(site, launcher=Path("/bin/true")), "key", None) as (stage, _):
        assert stage.pod_dir.parent == tmp_path / "pods"
    with pytest.raises(HostFailed, match="undo template's VM"):
        async with templates._stage(site, "key", None):
            pytest.fail("it is in the way still")


async def test_a_maker_that_is_cancelled_undoes_all_the_same(tmp_path, monkeypatch):
    done, inside = [], asyncio.Event()

    async def undo(_launcher, directory):
        done.append(directory.exists())

    monkeypatch.setattr(templates, "_undo", undo)
    site = Site(path=tmp_path, run_dir=tmp_path, launcher=Path("/l"), budgets=Budgets(), deadlines=Deadlines())

    async def make():
        async with templates._stage(site, "key", None):
            inside.set()
            await asyncio.Event().wait()

    async with asyncio.TaskGroup() as group:
        task = group.create_task(make())
        await inside.wait()
        task.cancel()
    assert done == [False, True]
