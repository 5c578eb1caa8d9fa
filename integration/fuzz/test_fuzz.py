"""The short form of every fuzz target: the same inputs each time, in a minute for all. The long form is docs/fuzzing.md's.

A seed of its own, so that the long runs and this one do not try the same inputs.
"""

import pkgutil
import re
from importlib import import_module
from pathlib import Path
from typing import Final

import pytest

from integration.fuzz import engine, planted
from integration.fuzz.planted import Bug

SEED: Final = 7
#: Inputs, so that each takes a few seconds; those of the launcher start a process each.
COUNTS: Final = {
    "ttrpc_frames": 5_000,
    "messages": 10_000,
    "agent_replies": 3_000,
    "oci_specs": 2_000,
    "config_toml": 1_000,
    "bootstrap": 10_000,
    "ledger_lines": 3_000,
    "journal_lines": 3_000,
    "console_bytes": 2_000,
    "handshake": 10_000,
    "qmp_lines": 3_000,
    "undo_ledgers": 200,
    "launcher_stdin": 200,
}
#: A planted bug has been found by then.
FOUND_WITHIN: Final = 5_000
PLANTED: Final = (*planted.BUGS.items(), *planted.MORE)
#: Targets with nothing to refuse.
TAKES_ALL: Final = {"ledger_lines", "journal_lines", "console_bytes", "handshake", "launcher_stdin"}


@pytest.mark.parametrize(("name", "count"), COUNTS.items(), ids=COUNTS)
def test_nothing_but_what_is_permitted(name: str, count: int) -> None:
    done = engine.run(import_module(f"integration.fuzz.{name}").TARGET, seed=SEED, count=count)
    assert done.taken + done.refused == count
    assert done.taken > count // 50, "hardly an input is taken, so little behind the first check is reached"
    assert done.refused > count // 50 or name in TAKES_ALL


def test_every_target_is_run() -> None:
    assert set(COUNTS) == set(engine.TARGETS) == set(planted.BUGS)


@pytest.mark.parametrize(("name", "bug"), PLANTED, ids=[f"{name}-{bug.patch.__name__}" for name, bug in PLANTED])
def test_a_planted_bug_is_found(name: str, bug: Bug, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each target can fail, and reaches what it is for."""
    target = import_module(f"integration.fuzz.{name}").TARGET
    holder, _, attribute = bug.where.rpartition(".")
    owner = pkgutil.resolve_name(holder)
    monkeypatch.setattr(owner, attribute, bug.patch(getattr(owner, attribute), tmp_path))
    with pytest.raises(BaseException, match=re.escape(bug.words) or None) as caught:
        engine.run(target, seed=SEED, count=FOUND_WITHIN)
    assert f"{name}: seed {SEED}, input " in caught.value.__notes__[-1]


def test_a_finding_stops_the_run_and_can_be_repeated() -> None:
    """The engine itself: an exception that is not permitted is not swallowed."""
    honest = import_module("integration.fuzz.bootstrap").TARGET
    strict = engine.Target(honest.name, (), honest.make, honest.opened)
    with pytest.raises(Exception) as caught:
        engine.run(strict, seed=SEED, count=1000)
    assert caught.value.__notes__[0].startswith("bootstrap: seed 7, input ")
