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
from kata_shimd.config.load import Told
from kata_shimd.errors import HostFailed, VmFailed
from kata_shimd.ledger import Kind
from kata_shimd.templates import Site, Templates
from kata_shimd.vm.accel import Accelerator
from kata_shimd.vm.machine import HALF, Ground
from kata_shimd.vm.phases import Phases
from kata_shimd.vm.spec import Budgets, ShareSpec, Transport, VmSpec
from kata_shimd.vm.template import key, memory, store
from kata_shimd.vm.template.store import STATE, Refused, Store

PAGES = 4


class Notes(list):
    why = ""

    def __call__(self, event, **fields):
        self.append(event)
        self.why = fields.get("why", self.why)

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
        self.store, self.notes, self.orders, self.trouble = Store(self.site.path), Notes(), [], {}
        self.ledger = SimpleNamespace(state={}, set=lambda name, value: self.ledger.state.update({name: value}))
        monkeypatch.setattr(templates.ordering, "send", self._send)
        monkeypatch.setattr(Templates, "_clone", self._clone)

    def make(self):
        ram = memory.new(PAGES * memory.PAGE)
        self.store.begin()
        self.store.publish(self.key, {}, b"state", ram)
        os.close(ram)

    def _send(self, order, run_dir, launcher, cgroups):
        if "order" in self.trouble:
            raise self.trouble["order"]
        self.orders.append((order.key, dict(order.told.annotations)))
        return SimpleNamespace(pid=7, wait=asyncio.Event().wait, forget=lambda: None)

    async def _clone(self, *_):
        self.ledger.set(HALF, True)
        if "clone" in self.trouble:
            raise self.trouble["clone"]
        return SimpleNamespace(provisional=True)

    @property
    def key(self):
        return key.name(key.inputs(self.spec))

    async def pod(self, spec=None, **annotations):
        """One pod's boot; whether it was cloned, and what its journal says."""
        self.notes.clear()
        made = Templates(self.site, SimpleNamespace(create_task=lambda task, name: task.close()), self.notes)
        vm = await made.clone(spec or self.spec, Ground(Phases(self.notes)), self.ledger, None, None, None)
        assert vm is None or not vm.provisional
        assert not self.ledger.state.get(HALF)
        await made.order(Told(annotations={f"io.katacontainers.{name}": text for name, text in annotations.items()}))
        return vm is not None, [note for note in self.notes if note != "boot-phase"]


@pytest.fixture
def scene(tmp_path, monkeypatch):
    return Scene(tmp_path, monkeypatch)


MISSED = ["template-passed-over", "template-ordered"]


async def test_the_first_is_booted_and_orders_it_and_others_use_it(scene):
    assert await scene.pod() == (False, MISSED)
    assert scene.orders == [(scene.key, {})]
    scene.make()
    assert await scene.pod() == (True, ["cloned"])
    assert len(scene.orders) == 1


async def test_one_of_annotations_is_ordered_by_the_second_that_misses_it(scene):
    assert await scene.pod(memory="1") == (False, ["template-passed-over"] * 2)
    assert scene.orders == []
    assert await scene.pod(memory="1") == (False, MISSED)
    assert scene.orders == [(scene.key, {"io.katacontainers.memory": "1"})]


async def test_one_that_is_bad_is_ordered_anew(scene):
    scene.make()
    (scene.site.path / scene.key / STATE).write_bytes(b"other")
    assert await scene.pod() == (False, ["template-refused", *MISSED])
    assert scene.store.list() == []


async def test_one_that_could_not_be_made_is_let_rest(scene):
    scene.store.begin()
    scene.store.failed(scene.key, "No space left on device")
    assert await scene.pod() == (False, ["template-passed-over"])
    assert "No space left on device" in scene.notes.why
    scene.store.forgive(scene.key)
    assert await scene.pod() == (False, MISSED)


async def test_one_whose_maker_was_killed_is_let_rest_and_one_that_is_at_it_is_waited_for(scene):
    """A maker writes its failure down before it begins."""
    scene.store.begin()
    with scene.store.making(scene.key) as ours:
        scene.store.failed(scene.key, "its maker was ended")
        assert ours
        assert await scene.pod() == (False, ["template-passed-over"])
        assert "is being made" in scene.notes.why
    assert await scene.pod() == (False, ["template-passed-over"])
    assert "its maker was ended" in scene.notes.why
    assert scene.orders == []


async def test_one_whose_clone_fails_is_removed_and_let_rest(scene):
    scene.make()
    scene.trouble["clone"] = VmFailed("dial agent", "", "no answer")
    assert await scene.pod() == (False, ["clone-failed"])
    scene.trouble.clear()
    assert scene.store.find(scene.key) is None
    assert await scene.pod() == (False, ["template-passed-over"])
    assert "no answer" in scene.notes.why


async def test_one_whose_memory_is_bad_is_ordered_anew(scene):
    scene.make()
    scene.trouble["clone"] = Refused("read template", scene.key, "its memory is not what was written")
    assert await scene.pod() == (False, ["template-refused", *MISSED])
    assert scene.store.list() == []


async def test_one_that_is_being_made_is_not_ordered_again(scene):
    scene.store.begin()
    with scene.store.making(scene.key) as ours:
        assert ours
        assert await scene.pod() == (False, ["template-passed-over"] * 2)
    assert await scene.pod() == (False, MISSED)


async def test_a_maker_that_cannot_be_started_is_said(scene):
    scene.trouble["order"] = HostFailed("start template maker", "", "Out of memory")
    assert await scene.pod() == (False, ["template-passed-over", "template-failed"])


@pytest.mark.parametrize("change", [{"initrd": None}, {"transport": Transport.VSOCK}])
async def test_pods_that_can_have_none_are_booted(scene, change):
    assert await scene.pod(replace(scene.spec, **change)) == (False, ["template-passed-over"])
    assert scene.orders == []


async def test_a_place_that_is_none_is_said(scene, monkeypatch):
    monkeypatch.setattr(store, "_filesystem", lambda _path: "ext4")
    assert await scene.pod() == (False, ["template-failed"])


async def test_a_guest_that_is_gone_is_left_to_the_boot_to_tell(scene):
    scene.spec.image.unlink()
    assert await scene.pod() == (False, ["template-failed"])


# --- where it is made --------------------------------------------------------------------------------------------------


def live(directory):
    return [(record.kind, dict(record.fields)) for record in ledgers.read(directory).live.values()]


async def test_what_a_template_is_made_with_is_on_record(tmp_path, monkeypatch):
    undone = []

    async def undo(_launcher, directory):
        undone.append(directory.exists() and live(directory))

    monkeypatch.setattr(templates, "_undo", undo)
    site = Site(path=tmp_path, run_dir=tmp_path, launcher=Path("/l"), budgets=Budgets(), deadlines=Deadlines())
    async with templates._stage(site, "key") as (stage, journal):
        stage.made(stage.plan(Kind.PROCESS, what="qemu"), pid=7, start=9)
        journal.write("x")
        opened = json.loads((stage.pod_dir / ledgers.NAME).read_text().splitlines()[0])
    assert (opened["namespace"], opened["id"]) == ("kata-shimd", "template-key")
    assert undone == [False, [("process", {"what": "qemu", "pid": 7, "start": 9})]]


async def test_what_a_maker_that_died_has_left_is_undone_first(tmp_path, monkeypatch):
    site = Site(path=tmp_path, run_dir=tmp_path, launcher=Path("/bin/false"), budgets=Budgets(), deadlines=Deadlines())
    async with templates._stage(replace(site, launcher=Path("/bin/true")), "key") as (stage, _):
        assert stage.pod_dir.parent == tmp_path / "pods"
    with pytest.raises(HostFailed, match="undo template's VM"):
        async with templates._stage(site, "key"):
            pytest.fail("it is in the way still")


async def test_a_maker_that_is_cancelled_undoes_all_the_same(tmp_path, monkeypatch):
    done, inside = [], asyncio.Event()

    async def undo(_launcher, directory):
        done.append(directory.exists())

    monkeypatch.setattr(templates, "_undo", undo)
    site = Site(path=tmp_path, run_dir=tmp_path, launcher=Path("/l"), budgets=Budgets(), deadlines=Deadlines())

    async def make():
        async with templates._stage(site, "key"):
            inside.set()
            await asyncio.Event().wait()

    async with asyncio.TaskGroup() as group:
        task = group.create_task(make())
        await inside.wait()
        task.cancel()
    assert done == [False, True]
