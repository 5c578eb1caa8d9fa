"""Results of a long run: parts add up, and the page says what there is."""

import json

import pytest

from integration.keeper import results
from integration.keeper.load import Seen
from integration.keeper.results import FIRST, Run
from integration.keeper.setups import Keeper, Loop, Setup


@pytest.fixture(scope="module", autouse=True)
def module_leaves_nothing() -> None:
    """Nothing is started here."""


@pytest.fixture(autouse=True)
def leaves_nothing() -> None:
    """Nothing is started here."""


def part(kills: int, *, wrong: str = "", setup: Setup = FIRST) -> Run:
    seconds = {"list": [0.021, 0.022, 0.029, 1.4], "life": [5.5]}
    seen = Seen(kills, seconds=seconds, wrong=[wrong] if wrong else [], loads=[2.0, 4.0])
    return Run.of(seen, setup, stream_kib=64)


def test_parts_add_up_and_are_read_again() -> None:
    run = Run(1000, 64)
    run.join(part(50))
    run.join(Run.read(part(40, wrong="list: 1 |\nUNKNOWN").text()))
    run.wrong += ["exec: 2", "list: 3"]
    assert (run.kills, run.parts, run.loads) == (90, 2, [2.0, 4.0, 2.0, 4.0])
    assert (run.calls["list"].total, run.calls["list"].within(0.5), run.calls["list"].longest) == (8, 0.03, 1.4)
    assert run.calls["list"].within(0.99) == 1.41
    said = results.section(run)
    assert "90 of 1000 deaths, in 2 parts" in said
    assert "3 complaints:\n\n- list: 1 / UNKNOWN (and 1 more of the kind)\n- exec: 2\n" in said
    assert Run.read(run.text()) == run


def test_the_page_is_written_between_its_marks(tmp_path, monkeypatch) -> None:
    page = tmp_path / "keeper.md"
    page.write_text(f"before\n\n{results.BEGIN}\nold\n{results.END}\n\nafter\n")
    monkeypatch.setattr(results, "PAGE", page)
    monkeypatch.setattr(results, "FILE", file := tmp_path / "results.json")
    file.write_text("[]")
    for _ in range(2):
        results.keep(part(7))
        text = page.read_text()
        assert text.startswith("before\n\n<!-- made") and text.endswith(f"{results.END}\n\nafter\n")
        assert "7 of 7 deaths" in text and "No complaint." in text and "old" not in text


def test_each_setup_has_a_run_of_its_own(tmp_path, monkeypatch) -> None:
    """The first file held one run alone, which did not say under what it was made."""
    page = tmp_path / "keeper.md"
    page.write_text(f"{results.BEGIN}\n{results.END}\n")
    monkeypatch.setattr(results, "PAGE", page)
    monkeypatch.setattr(results, "FILE", file := tmp_path / "results.json")
    before = json.loads(part(40).text())
    del before["setup"]
    file.write_text(json.dumps(before, indent=1))
    other = Setup(Keeper.SYSTEMD, Loop.ASYNCIO)
    results.keep(part(7, setup=other))
    results.keep(part(8, setup=other))
    assert {setup: run.kills for setup, run in results.kept().items()} == {FIRST: 40, other: 8}
    said = page.read_text()
    first, second = said.index("### The launcher is the keeper"), said.index("### Systemd is the keeper, asyncio")
    assert first < said.index("40 of 40 deaths") < second < said.index("8 of 8 deaths")
