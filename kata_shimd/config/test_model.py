"""Arithmetic of the tree: deadlines by accelerator, sizes by host."""

import math
from dataclasses import FrozenInstanceError, astuple, replace

import pytest

from kata_shimd.config import Accelerator, defaults, load
from kata_shimd.config.model import TIME_SCALE

TIMEOUTS = defaults().timeouts


def test_scaled_multiplies_every_deadline_by_the_one_factor():
    factor = TIME_SCALE[Accelerator.TCG]
    assert astuple(TIMEOUTS.scaled(Accelerator.TCG)) == tuple(value * factor for value in astuple(TIMEOUTS))


def test_kvm_is_the_measure():
    assert TIMEOUTS.scaled(Accelerator.KVM) == TIMEOUTS


def test_every_accelerator_has_a_factor():
    assert set(TIME_SCALE) == set(Accelerator)


def test_explicit_time_scale_wins_over_the_accelerator():
    config = load(None, b"[shimd]\ntime_scale = 2.5\n", None, {}, search=()).config
    assert config.deadlines(Accelerator.TCG) == TIMEOUTS.times(2.5)
    assert defaults().deadlines(Accelerator.TCG) == TIMEOUTS.scaled(Accelerator.TCG)


def test_the_tree_is_frozen():
    with pytest.raises(FrozenInstanceError):
        defaults().hypervisor.default_memory_mib = 1


@pytest.mark.parametrize(
    ("configured", "boot"), [(1, 1), (1.5, 2), (0, 1), (0.2, 1), (-1, 8), (-0.5, 8), (8, 8), (9, 8)]
)
def test_boot_vcpus(configured, boot):
    """`kata.md` §8.2: 0 is 1; negative or more than the host has is all of the host."""
    assert replace(defaults().hypervisor, default_vcpus=configured).boot_vcpus(8) == boot


@pytest.mark.parametrize(("configured", "limit"), [(0, 8), (4, 4), (16, 8), (1, 2)])
def test_max_vcpus_is_within_the_host_and_never_below_boot(configured, limit):
    assert replace(defaults().hypervisor, default_vcpus=2, default_maxvcpus=configured).max_vcpus(8) == limit


@pytest.mark.parametrize(("configured", "limit"), [(0, 16384), (4096, 4096), (10**6, 16384), (1024, 2048)])
def test_max_memory_is_within_the_host_and_never_below_boot(configured, limit):
    assert replace(defaults().hypervisor, default_maxmemory_mib=configured).max_memory_mib(16384) == limit


def test_deadlines_are_positive_and_finite():
    assert all(0 < value < math.inf for value in astuple(TIMEOUTS))
