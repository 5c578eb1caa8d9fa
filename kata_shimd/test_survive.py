"""Who keeps a pod, and what the launcher is told of it."""

import pytest

from kata_shimd.config.load import defaults, load
from kata_shimd.config.model import Keeping
from kata_shimd.errors import InvalidArgument
from kata_shimd.survive import keeping, keeping_value


@pytest.mark.parametrize(
    ("setting", "in_unit", "chosen"),
    [
        ("off", True, "off"),
        ("off", False, "off"),
        ("auto", True, "systemd"),
        ("auto", False, "launcher"),
        ("systemd", True, "systemd"),
        ("launcher", False, "launcher"),
    ],
)
def test_who_keeps_a_pod(setting, in_unit, chosen):
    assert keeping(Keeping(setting), in_unit=in_unit) is Keeping(chosen)


@pytest.mark.parametrize(("setting", "in_unit"), [("systemd", False), ("launcher", True)])
def test_a_keeper_that_cannot_be_is_refused(setting, in_unit):
    with pytest.raises(InvalidArgument, match=f"choose keeper: {setting}: "):
        keeping(Keeping(setting), in_unit=in_unit)


def test_the_launcher_is_told_how_many_daemons_may_die():
    text = b"[shimd]\nkeeper_deaths = 77\nkeeper_seconds = 88"
    config = load(None, text, None, {}, search=()).config
    assert keeping_value(config.shimd) == {"deaths": 77, "within": 88}


def test_by_default_daemons_that_are_slow_to_die_are_too_many_as_well():
    """A busy host needs a second for a daemon that dies as soon as it can; one that hangs first, some more."""
    shimd = defaults().shimd
    assert shimd.keeper_deaths * 10 <= shimd.keeper_seconds
