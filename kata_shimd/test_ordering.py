"""Orders say all that a template follows from; a maker gives way."""

from pathlib import Path

import pytest

from kata_shimd import ordering
from kata_shimd.config.load import Told
from kata_shimd.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from kata_shimd.ordering import MOST, Order
from kata_shimd.vm.template.store import Listed

MEMORY = "io.katacontainers.config.hypervisor.default_memory"
PLENTY = "MemTotal: 9 kB\nMemAvailable:  4194304 kB\n"


class Shelf:
    """A store of which nothing but names is true."""

    path = Path("/run/t")

    def __init__(self, *found, free=512, size=512):
        self.found, self.removed, self.mib = found, [], (free, size)

    def room(self):
        return tuple(number << 20 for number in self.mib)

    def list(self):
        return self.found

    def remove(self, name):
        self.removed.append(name)


@pytest.fixture(autouse=True)
def node(tmp_path, monkeypatch):
    (tmp_path / "meminfo").write_text(PLENTY)
    monkeypatch.setattr(ordering, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(ordering.key, "holds", lambda depends: depends["holds"])


@pytest.mark.parametrize(
    "told",
    [
        Told(),
        Told(config_path=Path("/a b"), config_body=b"\0\xff[x]", env_path=Path("/é"), annotations={MEMORY: "5"}),
    ],
)
def test_an_order_arrives_as_it_was_given(told):
    order = Order("key", told)
    assert Order.parse(order.dump()) == order


def test_only_what_a_machine_may_follow_from_is_in_it():
    order = Order("key", Told(annotations={MEMORY: "5", "io.kubernetes.cri.sandbox-id": "x"}))
    assert Order.parse(order.dump()).told.annotations == {MEMORY: "5"}


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"{}", b'{"key": 1, "config_path": 5, "config_body": 7}'])
def test_what_is_no_order_is_refused(raw):
    with pytest.raises(InvalidArgument, match="read order"):
        Order.parse(raw)


def test_where_there_is_room_nothing_is_said():
    ordering.make_room(Shelf(*(Listed(str(n), "") for n in range(MOST - 1))), 4096)


def test_what_nobody_can_want_any_more_goes():
    old, new = (Listed(name, "", depends={"holds": name == "new"}) for name in ("old", "new"))
    shelf = Shelf(old, new, Listed("bad", "it is another's"))
    ordering.make_room(shelf, 1)
    assert shelf.removed == ["old", "bad"]


def test_enough_is_enough():
    with pytest.raises(FailedPrecondition, match=f"{MOST} are there already"):
        ordering.make_room(Shelf(*(Listed(str(n), "") for n in range(MOST))), 1)


def test_a_small_node_makes_none():
    with pytest.raises(ResourceExhausted, match="4096 MiB are free, one more guest may take 4097"):
        ordering.make_room(Shelf(), 4097)


@pytest.mark.parametrize(
    ("free", "size", "fits"), [(250, 512, True), (249, 512, False), (122, 0, True), (100, 100, False)]
)
def test_of_a_tmpfs_a_quarter_is_left_to_others(free, size, fits):
    shelf = Shelf(free=free, size=size)
    if fits:
        ordering.make_room(shelf, 2048)
    else:
        with pytest.raises(ResourceExhausted, match=f"of {size} MiB there {free} are free; a template may take 122"):
            ordering.make_room(shelf, 2048)


def test_what_goes_makes_room_first():
    """Or the templates of a guest that was replaced would be in the way of the new one's for ever."""
    shelf = Shelf(Listed("old", "", depends={"holds": False}), free=50)
    with pytest.raises(ResourceExhausted, match="50 are free"):
        ordering.make_room(shelf, 2048)
    assert shelf.removed == ["old"]
