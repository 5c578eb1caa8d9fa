"""Sparse copies: what is a hole stays one, what is not arrives."""

import os
import random

import pytest

from kata_shimd.errors import HostFailed
from kata_shimd.vm.template import memory
from kata_shimd.vm.template.memory import PAGE

PAGES = 300


@pytest.fixture
def files():
    made = [memory.new(PAGES * PAGE) for _ in range(2)]
    yield made
    for fd in made:
        os.close(fd)


def whole(fd):
    return os.pread(fd, PAGES * PAGE, 0)


def used_pages(fd):
    return sum(length for _, length in memory.extents(fd)) // PAGE


@pytest.mark.parametrize("copy", [memory.copy, memory.copy_used])
@pytest.mark.parametrize("pages", [(), (0,), (PAGES - 1,), (0, 1, 2, 70, 128, 129, 299), tuple(range(PAGES))])
def test_what_is_there_arrives_and_holes_stay_holes(files, copy, pages):
    source, target = files
    for page in pages:
        os.pwrite(source, bytes([page % 255 + 1]) * PAGE, page * PAGE)
    assert copy(source, target) == len(pages) * PAGE
    assert whole(target) == whole(source)
    assert used_pages(target) == len(pages)


@pytest.mark.parametrize("seed", range(20))
def test_pages_of_zeros_become_holes(files, seed):
    source, target = files
    chance = random.Random(seed)
    filled = [page for page in range(PAGES) if chance.random() < 0.7]
    real = [page for page in filled if chance.random() < 0.5]
    for page in filled:
        os.pwrite(source, bytes(PAGE), page * PAGE)
    for page in real:
        os.pwrite(source, b"x", page * PAGE + chance.randrange(PAGE))
    assert memory.copy_used(source, target) == len(real) * PAGE
    assert whole(target) == whole(source)
    assert used_pages(target) == len(real)


def test_extents_are_all_data_in_order(files):
    source, _ = files
    for page in (3, 4, 9):
        os.pwrite(source, b"x", page * PAGE)
    assert list(memory.extents(source)) == [(3 * PAGE, 2 * PAGE), (9 * PAGE, PAGE)]


def test_no_room_is_said(files, tmp_path):
    source, _ = files
    os.pwrite(source, b"x", 0)
    with (tmp_path / "read-only").open("wb"):
        fd = os.open(tmp_path / "read-only", os.O_RDONLY)
    with pytest.raises(HostFailed, match="copy guest memory"):
        memory.copy(source, fd)
    os.close(fd)


def test_its_size_is_for_ever(files):
    for size in (0, PAGE, 2 * PAGES * PAGE):
        with pytest.raises(PermissionError):
            os.ftruncate(files[0], size)


def test_memory_that_cannot_be_is_said():
    with pytest.raises(HostFailed, match="make guest memory"):
        memory.new(-1)
