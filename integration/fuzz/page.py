"""Makes docs/fuzzing.md from the targets and their last results: ``python -m integration.fuzz.page > docs/fuzzing.md``."""

import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Final

from integration.fuzz import results
from integration.fuzz.engine import TARGETS
from integration.fuzz.results import Result

PATH: Final = Path(__file__).parents[2] / "docs/fuzzing.md"
HEAD: Final = """\
<!-- made by `python -m integration.fuzz`; do not edit -->

# Fuzzing

Every byte that comes from a guest, from a client, or from a file that a crash may have torn is read by something that has a fuzz
target here. A target makes an input from `seed/number` alone, so a finding is repeated by its two numbers; it says which exceptions
refuse an input, and anything else is a finding, as is a broken property of what was taken. What inputs start from is kept in
`integration/fuzz/corpus`.

    integration/long fuzz                      every target, 10⁶ inputs each; writes this page
    python -m integration.fuzz --count 10000 qmp_lines config_toml
    pytest integration/fuzz                    the short form, always the same inputs

`launcher_stdin` and `undo_ledgers` start a process for each input, and are slow; a target stops when its time is up, and the table
says how far it came. That each target can fail is a test of its own: a bug is planted in what it feeds, and has to be found.

Found by a long run, now a test: a `root.path` that even root may not look at ended Create with an error of Python's own
(`oci_specs`, seed 1, input 871201).

| Target | What is fed |
|---|---|
"""
LAST: Final = """
## The last long run of each

| Target | Inputs | Taken | Refused | Seed | Seconds | Found | Date |
|---|---|---|---|---|---|---|---|
"""


def page(kept: Mapping[str, Result]) -> str:
    """The whole page."""
    fed = "".join(f"| `{name}` | {_about(name)} |\n" for name in TARGETS)
    ran = "".join(f"{row(kept[name])}\n" for name in TARGETS if name in kept)
    used = sorted({result.versions for result in kept.values()})
    return HEAD + fed + LAST + ran + "\nVersions: " + "; ".join(used) + ".\n"


def row(result: Result) -> str:
    short = f" (of {results.WANTED:,} wanted)" if result.inputs < results.WANTED else ""
    cells = (
        f"`{result.target}`", f"{result.inputs:,}{short}", f"{result.taken:,}", f"{result.refused:,}", str(result.seed),
        str(result.seconds), result.finding or "nothing", result.date,
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _about(name: str) -> str:
    """The first sentence of the target's own words."""
    words = (import_module(f"integration.fuzz.{name}").__doc__ or "").split("\n\n")[0]
    return " ".join(words.split()).removeprefix("Fuzz of ").rstrip(".")


if __name__ == "__main__":
    sys.stdout.write(page(results.kept()))
