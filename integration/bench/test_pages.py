"""What is written about measurements: ratios, verdicts, pages, plots, the command line."""

from pathlib import Path
from xml.etree import ElementTree

import pytest

from integration.bench import pages, plot
from integration.bench.__main__ import GROUPS, arguments
from integration.bench.pod import used
from integration.bench.results import Claim, Group, Outcome, Series

MEASURED = {
    "ours": Series("ms", [2.0, 4.0, 9.0]),
    "its": Series("ms", [1.0, 4.0, 3.0]),
    "weight": Series("MB", [5.0]),
}
CLAIMS = (
    Claim("ours ÷ its", "ours", "its", 2),
    Claim("its ÷ ours", "its", "ours", 0.8, at_least=True, limits="its age"),
    Claim("weight", "weight", aim=6),
    Claim("ours", "ours"),
)
GROUP = Group("some", "Some rows", "How it is done.", lambda _: MEASURED, CLAIMS)
OUTCOME = Outcome(MEASURED, {"machine": "this one"})
MEMINFO = "MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable: 700 kB\nBuffers: 10 kB\nCached: 90 kB\nHugePages_Total: 0\n"


def test_a_ratio_is_the_median_of_the_rounds_own() -> None:
    assert CLAIMS[0].of(MEASURED).values == [2.0, 1.0, 3.0]
    assert CLAIMS[0].of(MEASURED).median == 2.0
    with pytest.raises(ValueError, match="shorter"):
        Claim("", "ours", "weight").of(MEASURED)


def test_met_is_said_only_where_there_is_an_aim() -> None:
    assert [claim.met(MEASURED) for claim in CLAIMS] == [True, False, True, None]


def test_tables_have_medians_ranges_aims_and_verdicts() -> None:
    known = [(GROUP, MEASURED)]
    assert "| some | ours | 4.00 | 7.00 | ms | 3 |" in pages.table(known)
    said = pages.verdicts(known)
    assert "| ours ÷ its | ≤ 2 | 2.00 | 2.00 | 3 | yes |  |" in said
    assert "| its ÷ ours | ≥ 0.8 | 0.50 | 0.67 | 3 | **no** | its age |" in said
    assert "| weight | ≤ 6 MB | 5.00 MB | 0 | 1 | yes |  |" in said
    assert "| ours |  | 4.00 ms | 7.00 | 3 |  |  |" in said


def test_a_page_keeps_what_people_wrote(tmp_path: Path) -> None:
    pages.write([GROUP], {"some": OUTCOME}, tmp_path)
    page = tmp_path / "some.md"
    page.write_text(page.read_text() + "\n## Why\n\nBecause.\n")
    other = Outcome({**MEASURED, "ours": Series("ms", [1.0, 1.0, 1.0])}, {"machine": "another"})
    pages.write([GROUP], {"some": other}, tmp_path)
    text = page.read_text()
    assert text.startswith("# Some rows\n") and text.endswith("\n## Why\n\nBecause.\n")
    assert "another" in text and "this one" not in text and text.count("How it is done.") == 1


def test_results_are_kept_so_that_a_part_can_be_run_again(tmp_path: Path) -> None:
    pages.write([GROUP], {"some": OUTCOME}, tmp_path)
    [(name, kept)] = pages.load(tmp_path).items()
    assert name == "some" and kept.circumstances == OUTCOME.circumstances
    assert {name: list(one.values) for name, one in kept.measured.items()} == {
        name: list(one.values) for name, one in MEASURED.items()
    }
    index = (tmp_path / "README.md").read_text()
    assert "[weight](some.md)" in index and "(aims.svg)" in index


def test_the_index_names_what_was_not_run(tmp_path: Path) -> None:
    other = Group("other", "Other rows", "", lambda _: MEASURED, CLAIMS)
    pages.write([GROUP, other], {"some": OUTCOME}, tmp_path)
    assert "without a row: [Other rows](other.md)" in (tmp_path / "README.md").read_text()
    pages.write([GROUP, other], {"some": OUTCOME, "other": OUTCOME}, tmp_path)
    assert "without a row" not in (tmp_path / "README.md").read_text()


def test_results_that_lack_what_is_claimed_now_are_dropped(tmp_path: Path) -> None:
    less = Outcome({name: one for name, one in MEASURED.items() if name != "weight"}, {})
    pages.write([GROUP], {"some": less}, tmp_path)
    assert not pages.load(tmp_path) and "without a row: [Some rows]" in (tmp_path / "README.md").read_text()


def test_plots_are_xml_with_a_point_for_each_value() -> None:
    for text, points in ((plot.boxes(MEASURED), 7), (plot.aims([(CLAIMS[0], MEASURED), (CLAIMS[2], MEASURED)]), 4)):
        tree = ElementTree.fromstring(text)
        assert len(tree.findall("{http://www.w3.org/2000/svg}circle")) == points


@pytest.mark.parametrize(("most", "last"), [(1.0, 1.0), (7.3, 6.0), (0.026, 0.02), (230.0, 200.0)])
def test_ticks_are_round_and_few(most: float, last: float) -> None:
    found = plot.ticks(most)
    assert found[0] == 0 and found[-1] == pytest.approx(last) and len(found) <= 6


def test_pages_of_the_repository_are_those_of_the_kept_results(tmp_path: Path) -> None:
    """Nobody has corrected a figure by hand, and a row that was renamed was run again."""
    kept = pages.load()
    for file in pages.FOLDER.glob("*.md"):
        (tmp_path / file.name).write_text(file.read_text())
    pages.write(GROUPS, kept, tmp_path)
    for file in tmp_path.iterdir():
        assert file.read_text() == (pages.FOLDER / file.name).read_text(), f"run `{' '.join(pages.COMMAND)} --write`"


def test_names_of_rows_are_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert arguments(["state", "--quick"]).rows == ["state"]
    for words in (["stat"], ["--quick", "--write"]):
        with pytest.raises(SystemExit):
            arguments(words)
    assert "no such row: stat" in capsys.readouterr().err


def test_memory_is_what_is_neither_available_nor_page_cache() -> None:
    assert used(MEMINFO) == 200 * 1024
