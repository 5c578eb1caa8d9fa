"""The pages in docs/benchmarks: tables and plots from the results that are kept beside them, and round those what people
wrote.

Results of the last run of each group are in ``results.json``; a run of some groups leaves the others' as they are. In
a page only what is between two marks is rewritten, but for the index, which is all made here.
"""

import json
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from integration.bench import plot
from integration.bench.results import Claim, Group, Measured, Outcome, Series

FOLDER: Final = Path(__file__).resolve().parents[2] / "docs/benchmarks"
RESULTS: Final = "results.json"
COMMAND: Final = ("python", "-m", "integration.bench")
BEGIN, END = "<!-- measured: begin -->\n", "<!-- measured: end -->\n"
INDEX: Final = """# Benchmarks

Each row stands beside its peer, measured in the same run and in turn, so that a machine whose speed drifts is as
unfair to both; what is compared is the median of the rounds' own ratios. Seconds, machine, versions and load are on
the page of each row. All of it is made by

```console
# python -m integration.bench --write
```

with `integration/setup` done before; `python -m integration.bench --list` says which rows can be run alone, by name.
Where a page says "guests run by: TCG", all code of guests is emulated, and only ratios tell something of a machine that
has hardware virtualisation.
"""


def table(groups: Iterable[tuple[Group, Measured]]) -> str:
    """All series: what was measured."""
    lines = ["| row | what | median | IQR | unit | n |", "| --- | --- | --- | --- | --- | --- |"]
    for group, measured in groups:
        lines += [f"| {group.name} | {name} {_cells(series)}" for name, series in measured.items()]
    return "\n".join(lines)


def _cells(series: Series) -> str:
    return f"| {figure(series.median)} | {figure(series.iqr)} | {series.unit} | {len(series.values)} |"


def figure(value: float) -> str:
    """Three significant digits, and never an exponent."""
    if value == 0:
        return "0"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.4f}"


def verdicts(groups: Iterable[tuple[Group, Measured]], *, linked: bool = False) -> str:
    """All claims: aim, measured, met or not."""
    lines = ["| row | aim | measured | IQR | n | met | what limits it |", "| --- | --- | --- | --- | --- | --- | --- |"]
    for group, measured in groups:
        for claim in group.claims:
            name = f"[{claim.name}]({group.name}.md)" if linked else claim.name
            lines.append(_verdict(name, claim, measured))
    return "\n".join(lines)


def _verdict(name: str, claim: Claim, measured: Measured) -> str:
    series = claim.of(measured)
    met = {None: "", True: "yes", False: "**no**"}[claim.met(measured)]
    unit = f" {series.unit}" if series.unit else ""
    cells = (name, claim.aim_text(series.unit), figure(series.median) + unit, figure(series.iqr))
    return "| " + " | ".join([*cells, str(len(series.values)), met, claim.limits]) + " |"


def facts(circumstances: Mapping[str, str]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in circumstances.items())


def load(folder: Path = FOLDER) -> dict[str, Outcome]:
    """The results that are kept, by group."""
    try:
        kept = json.loads((folder / RESULTS).read_text())
    except FileNotFoundError:
        return {}
    return {name: Outcome.from_data(data) for name, data in kept.items()}


def write(groups: Sequence[Group], outcomes: Mapping[str, Outcome], folder: Path = FOLDER) -> None:
    """Keep these results, and rewrite their pages and the index. Those that lack what is claimed by now are dropped."""
    outcomes = {
        group.name: outcomes[group.name] for group in groups if group.name in outcomes and _whole(group, outcomes)
    }
    known = [(group, outcomes[group.name]) for group in groups if group.name in outcomes]
    kept = [f"{json.dumps(group.name)}: {json.dumps(_rounded(outcome))}" for group, outcome in known]
    (folder / RESULTS).write_text("{\n" + ",\n".join(kept) + "\n}\n")
    for group, outcome in known:
        (folder / f"{group.name}.svg").write_text(plot.boxes(outcome.measured))
        path = folder / f"{group.name}.md"
        path.write_text(page(path.read_text() if path.exists() else "", group, outcome))
    missing = [group for group in groups if group.name not in outcomes]
    _write_index([(group, outcome.measured) for group, outcome in known], missing, folder)


def _whole(group: Group, outcomes: Mapping[str, Outcome]) -> bool:
    """All that the group claims is there: it may claim more than when it was run."""
    needed = {name for claim in group.claims for name in (claim.ours, claim.peer) if name}
    return needed <= outcomes[group.name].measured.keys()


def _rounded(outcome: Outcome) -> dict[str, object]:
    data = outcome.data()
    for series in data["series"].values():
        series["values"] = [float(f"{value:.6g}") for value in series["values"]]
    return data


def page(text: str, group: Group, outcome: Outcome) -> str:
    """A page with what is measured put in place of what was."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        head, tail = f"# {group.title}\n\n", ""
    return head + BEGIN + "\n".join(_body(group, outcome)) + END + tail


def _body(group: Group, outcome: Outcome) -> Iterator[str]:
    command = shlex.join([*COMMAND, group.name])
    yield group.about + "\n"
    yield facts({**outcome.circumstances, "command": f"`{command}`"}) + "\n"
    yield verdicts([(group, outcome.measured)]) + "\n"
    yield table([(group, outcome.measured)]) + "\n"
    yield f"![each value, quartiles, median]({group.name}.svg)\n"


def _write_index(known: Sequence[tuple[Group, Measured]], missing: Sequence[Group], folder: Path) -> None:
    claims = [(claim, measured) for group, measured in known for claim in group.claims if claim.aim is not None]
    (folder / "aims.svg").write_text(plot.aims(claims))
    aimed = [(_only(group, aimed=True), measured) for group, measured in known]
    beside = [(_only(group, aimed=False), measured) for group, measured in known]
    parts = [INDEX, verdicts(aimed, linked=True), "\n![measured in relation to the aim](aims.svg)\n"]
    parts += ["Beside them, without an aim:\n", verdicts(beside, linked=True), ""]
    if missing:
        links = ", ".join(f"[{group.title}]({group.name}.md)" for group in missing)
        parts += [f"Not run by this command yet, so without a row: {links}.\n"]
    (folder / "README.md").write_text("\n".join(parts))


def _only(group: Group, *, aimed: bool) -> Group:
    claims = tuple(claim for claim in group.claims if (claim.aim is not None) is aimed)
    return Group(group.name, group.title, group.about, group.run, claims)
