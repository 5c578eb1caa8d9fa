"""The short form: every kept sequence and a few fresh ones on both shims. And, without a machine: page, generator, rules.

``KATA_SHIMD_DIFFERENTIAL_SEED`` repeats the fresh ones of an earlier run; every failure names its seed.
"""

import asyncio
import json
import os
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from integration.differential.__main__ import arguments
from integration.differential.explore import Verdict, pair
from integration.differential.generate import generate, parts
from integration.differential.intended import RULES
from integration.differential.model import Model
from integration.differential.page import PATH, page
from integration.differential.report import LAST_RUN, Incomplete, Report
from integration.differential.shim import kata, runc
from integration.differential.steps import Rpc, Sequence, cases
from integration.harness import longforms

#: How many fresh sequences are tried.
FRESH: Final = 4
#: In CI the same ones every time: what new ones find belongs among the cases, not between two unrelated changes.
_FRESH_SEED: Final = 30_000 if os.environ.get("CI") else random.SystemRandom().randrange(1 << 31)
FIRST_SEED: Final = int(os.environ.get("KATA_SHIMD_DIFFERENTIAL_SEED", _FRESH_SEED))


@pytest.fixture(scope="module", autouse=True)
def module_leaves_nothing() -> None:
    """In place of the one that looks at containerd: there is none here."""


@pytest.fixture(autouse=True)
def leaves_nothing() -> Iterator[None]:
    before = len(list(Path("/proc/self/fd").iterdir()))
    yield
    assert len(list(Path("/proc/self/fd").iterdir())) == before


async def judged(sequences: list[Sequence]) -> list[tuple[Sequence, Verdict]]:
    async with pair(runc(), kata()) as both:
        return [(sequence, await both.judge(sequence)) for sequence in sequences]


def unexplained(verdicts: list[tuple[Sequence, Verdict]]) -> str:
    """What is left of the differences, with the sequences that showed them."""
    return "\n".join(f"{verdict}\n{sequence}" for sequence, verdict in verdicts if verdict.differences)


def test_kept_sequences_differ_only_as_intended() -> None:
    """On one pod and under both names; what once differed does not again, and no rule is there that explains nothing."""
    verdicts = asyncio.run(judged(cases()))
    assert unexplained(verdicts) == ""
    used = {name for _, verdict in verdicts for name, _ in verdict.used}
    assert [rule.name for rule in RULES if rule.name not in used] == []


def test_fresh_sequences_differ_only_as_intended() -> None:
    seeds = range(FIRST_SEED, FIRST_SEED + FRESH)
    print(f"KATA_SHIMD_DIFFERENTIAL_SEED={FIRST_SEED}")
    verdicts = asyncio.run(judged([generate(seed) for seed in seeds]))
    assert unexplained(verdicts) == "", f"KATA_SHIMD_DIFFERENTIAL_SEED={FIRST_SEED}"


# --- without a machine -----------------------------------------------------------------------------------------------


def test_the_page_is_current() -> None:
    assert PATH.read_text() == page(), "python -m integration.differential.page > docs/differences.md"


def test_the_record_is_of_these_rules_and_cases() -> None:
    """`integration/long differential` makes it anew."""
    assert stale(json.loads(LAST_RUN.read_text())) == []


def stale(run: Mapping[str, Any]) -> list[str]:
    """What of a run on record is of other rules, of other kept sequences, or of nobody knows which state of the project."""
    found = {
        "rules": list(run["rules"]) != [rule.name for rule in RULES],
        "kept sequences": run["kept"] != len(cases()),
        "a difference": run["unexplained"] != 0,
        "no revision": "(" not in run["versions"].get("kata-shimd", ""),
    }
    return [what for what, wrong in found.items() if wrong]


def test_a_record_that_is_stale_is_seen() -> None:
    """A rule more or less, a kept sequence that was left out, a difference, no revision: each by itself."""
    rules = dict.fromkeys((rule.name for rule in RULES), 1)
    good = {"rules": rules, "kept": len(cases()), "unexplained": 0, "versions": {"kata-shimd": "0.1.0 (abc)"}}
    assert stale(good) == []
    assert stale({**good, "rules": {**rules, "another": 1}}) == ["rules"]
    assert stale({**good, "rules": dict(list(rules.items())[1:])}) == ["rules"]
    assert stale({**good, "kept": len(cases()) - 1}) == ["kept sequences"]
    assert stale({**good, "unexplained": 1}) == ["a difference"]
    assert stale({**good, "versions": {"kata-shimd": "0.1.0"}}) == ["no revision"]


def test_only_a_run_of_every_kept_sequence_goes_on_record() -> None:
    report = Report(runc())
    for case in cases()[1:]:
        report.add(case, Verdict([]))
    with pytest.raises(Incomplete, match="kept sequences"):
        report.record("seed 1", 60)
    report.add(cases()[0], Verdict([]))
    assert report.record("seed 1", 60)["kept"] == len(cases())


def test_the_long_form_renews_the_page() -> None:
    """Its words are those of a run that goes on record, which the program itself checks."""
    words = longforms.FORMS["differential"].words
    assert words[0] == "integration.differential"
    assert arguments(words[1:]).record


def test_a_record_of_anything_else_is_refused() -> None:
    for words in (["--record"], ["--record", "--cases", "--self-check"], ["--record", "--cases", "--file", "x"]):
        with pytest.raises(SystemExit):
            arguments(words)


def test_most_sequences_can_be_compared_to_their_end() -> None:
    """A signal that parts a container is there, in few."""
    parting = 0
    for seed in range(400):
        model, found = Model(), False
        for step in generate(seed).steps:
            found = found or any(parts(model, call) for call in step.calls)
            if not step.open:
                model.take(step.calls)
        parting += found
    assert 0.01 < parting / 400 < 0.1


def test_a_seed_is_a_sequence_for_ever() -> None:
    """Twice the same, and through JSON."""
    for seed in range(20):
        made = generate(seed)
        assert made == generate(seed)
        assert Sequence.from_json(made.to_json()) == made


def test_what_seeds_give() -> None:
    """Every RPC; several at once in most sequences, with open races; exits in between; both names of the service."""
    found: Counter[str] = Counter()
    for seed in range(200):
        made = generate(seed)
        found.update({str(call.rpc) for call in made.calls()})
        found["several at once"] += any(len(step.calls) > 1 for step in made.steps)
        found["race"] += any(step.open for step in made.steps)
        found["exit in between"] += any(word.startswith("exit") for step in made.steps[:-1] for word in step.until)
        found[kata().service(made.name)] += 1
    assert {str(rpc) for rpc in Rpc} <= found.keys()
    assert found["several at once"] > 100 and found["exit in between"] > 100 and found["race"] > 40
    assert min(found[name] for name in kata().services) > 80


def test_kept_sequences_say_why() -> None:
    assert [case.name for case in cases() if not case.note] == []


def test_rules_are_told_apart_by_name() -> None:
    names = [rule.name for rule in RULES]
    assert [name for name, number in Counter(names).items() if number > 1] == []
