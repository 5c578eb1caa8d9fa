"""Writes docs/differences.md from the rules of `intended`: ``python -m integration.differential.page > docs/differences.md``."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from integration.differential.intended import ANSWERS, LIVES
from integration.differential.report import LAST_RUN
from integration.differential.rules import ANY_CODE, Answer, Life
from integration.differential.spec_parts import SPEC
from integration.differential.steps import Rpc

PATH: Final = Path(__file__).parents[2] / "docs/differences.md"
HEAD: Final = """\
<!-- made by `python -m integration.differential.page`; edit integration/differential/intended.py instead -->

# Differences from containerd-shim-runc-v2

What containerd sees of our shim is what it sees of containerd-shim-runc-v2, with the differences below and no others. They are
rules of a test: `python -m integration.differential` replays random sequences of Task RPCs on both shims, and compares status
codes, replies, states, output and the order of events. What no row explains fails it.

Pids are compared only as zero or not, and as one per process: all of ours are QEMU's. Of exit times it counts whether there is one,
and that it is the same wherever it is told. Of calls issued at once, any outcome is right that runc's shim shows in one of several
replays.
"""
ANSWERED: Final = """
## Answers

| RPC | situation | runc's | ours | reason |
|---|---|---|---|---|
"""
LIVED: Final = """
## Lives

After these calls a process, or a container with its execs, is in different states, so nothing more of it is compared: neither its
answers nor, from there on, its events. What both answer to the call itself, the state they tell next and the exit status of what
ends are checked against the row; and of ours that its events, states and exit statuses agree with each other to the end.

| RPC | situation | runc's | ours | reason |
|---|---|---|---|---|
"""
READ: Final = """
## Parts of the OCI spec that mean the host

A container in a VM has no part in the host's kernel. Everything else in a spec reaches the guest.

| part | what becomes of it | reason |
|---|---|---|
"""
LAST: Final = """
## The last run on record

`integration/long differential` puts a run on record and writes this page; the short form is a test,
`integration/differential/test_differential.py`: the kept sequences (`integration/differential/cases`) and a few fresh ones, whose
seed it prints.

{date}: {sequences} sequences in {minutes} min, {kept} kept ones and the others from {first} on,
**{unexplained} with a difference that no rule explains**. {calls_made} calls of {rpcs} RPCs, {names};
{all_steps} steps, of which {at_once} issued several calls at once and {exits} saw a process end.
{programs}.

| rule | sequences that needed it |
|---|---|
"""


def page() -> str:
    """The whole page."""
    # What is seen in the reply, and again when everybody is asked for their state, is one row.
    answers = _table(dict.fromkeys(_answer(rule) for rule in ANSWERS))
    lives = _table(dict.fromkeys(_life(rule) for rule in LIVES))
    parts = _table((row.part, row.fate, row.reason) for row in SPEC)
    return HEAD + ANSWERED + answers + LIVED + lives + READ + parts + _last_run(json.loads(LAST_RUN.read_text()))


def _last_run(run: Mapping[str, Any]) -> str:
    """What the last run was made of, and how often each rule was needed in it."""
    steps = run["steps"]
    ran = LAST.format(
        **run,
        programs=", ".join(f"{name} {version}" for name, version in run["versions"].items()),
        calls_made=sum(run["calls"].values()),
        rpcs=len(run["calls"]),
        all_steps=steps["all"],
        at_once=steps["of several calls at once"],
        exits=steps["with an exit"],
        names=", ".join(f"{number} as `{name}`" for name, number in sorted(run["services"].items())),
    )
    return ran + _table((f"`{name}`", str(number)) for name, number in run["rules"].items())


def _table(rows: Iterable[tuple[str, ...]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _answer(rule: Answer) -> tuple[str, ...]:
    said = rule.words
    if said == ANY_CODE:
        said = _codes(rule.runc) or said[0], _codes(rule.ours) or said[1]
    return _rpcs(rule.rpcs), rule.situation, *said, rule.reason


def _codes(values: tuple[str, ...]) -> str:
    return " or ".join(f"`{value}`" for value in values)


def _life(rule: Life) -> tuple[str, ...]:
    return _rpcs(rule.rpcs), rule.situation, rule.runc.words, rule.ours.words, rule.reason


def _rpcs(rpcs: tuple[str, ...]) -> str:
    return "State" if len(rpcs) == len(Rpc) else ", ".join(rpcs)


if __name__ == "__main__":
    print(page(), end="")
