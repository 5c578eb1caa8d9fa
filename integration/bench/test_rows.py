"""Every row measures what it says, once. Nothing is asserted about time; memory is another matter, whoever else is busy."""

import os
from pathlib import Path

import pytest

from integration.bench import pod
from integration.bench.__main__ import GROUPS
from integration.bench.results import Group, Measured, Options

pytestmark = pytest.mark.vm

QUICK = Options(
    Path(os.environ.get("KATA_SHIMD_PREFIX", "/opt/kata-shimd")),
    Path(os.environ.get("KATA_SHIMD_GUEST", "/var/lib/kata-shimd/guest/current")),
    rounds=1,
    quick=True,
)
BOOT = ["network", "check", "share", "spawn", "qmp", "dial"]
CLONE = ["network", "check", "share", "template", "spawn", "qmp", "memory", "load", "dial", "identity"]


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.name)
def test_a_row(group: Group) -> None:
    measured = group.run(QUICK)
    for name, series in measured.items():
        assert series.values and all(value >= 0 for value in series.values), (name, series)
    for claim in group.claims:
        assert claim.of(measured).values, claim
    for check in CHECKS.get(group.name, ()):
        check(measured)


def value(measured: Measured, name: str) -> float:
    return measured[name].median


def in_order(prefix: str, phases: list[str]):
    def check(measured: Measured) -> None:
        moments = [value(measured, prefix + name) for name in ("`start` answered", "ready", "first byte")]
        assert 0 < moments[0] < moments[1] < moments[2]
        assert [name.removeprefix(f"{prefix}boot: ") for name in measured if f"{prefix}boot: " in name] == phases

    return check


def guest_is_small(measured: Measured) -> None:
    """60 MB is what a guest may have taken for itself when it is ready."""
    assert 10 < value(measured, "the guest uses") <= 60_000_000 / pod.MIB


def nothing_is_booted_for_a_further_container(measured: Measured) -> None:
    assert value(measured, "further container") < value(measured, "cold")


def a_machine_is_the_most_of_a_pod(measured: Measured) -> None:
    for kind in ("no network", "CNI"):
        sizes = [value(measured, f"{part}, {kind}") for part in ("virtiofsd", "daemon", "qemu", "all")]
        assert 0 < sizes[0] < sizes[1] < sizes[2] < sizes[3]


def a_share_is_not_a_zygote(measured: Measured) -> None:
    assert 0 < value(measured, "zygote's share") < value(measured, "daemon and its share of the zygote")


CHECKS = {
    "cold-start": [in_order("", BOOT), guest_is_small],
    "template": [in_order("booted: ", BOOT), in_order("cloned: ", CLONE)],
    "start": [nothing_is_booted_for_a_further_container],
    "memory": [a_machine_is_the_most_of_a_pod],
    "density": [a_share_is_not_a_zygote],
}
