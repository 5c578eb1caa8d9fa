"""Sparse copies: what is a hole stays one, what is not arrives."""

import os
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_a_checksum_tells_content_and_place(files, data):
    source, target = files
    os.pwrite(source, b"content" * 1000, 7 * PAGE)
    os.pwrite(source, b"x", 20 * PAGE)
    memory.copy(source, target)
    whole = memory.checksum(source)
    assert memory.checksum(target) == whole
    page, offset = data.draw(st.sampled_from([7, 8, 20])), data.draw(st.integers(0, PAGE - 1))
    byte = os.pread(target, 1, page * PAGE + offset)
    os.pwrite(target, bytes([byte[0] ^ data.draw(st.integers(1, 255))]), page * PAGE + offset)
    assert memory.checksum(target) != whole
    os.pwrite(target, byte, page * PAGE + offset)
    assert memory.checksum(target) == whole


def test_a_page_that_has_moved_changes_the_checksum(files):
    for fd, page in zip(files, (3, 4), strict=True):
        os.pwrite(fd, b"x", page * PAGE)
    assert memory.checksum(files[0]) != memory.checksum(files[1])


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
