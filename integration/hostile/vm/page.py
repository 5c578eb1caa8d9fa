"""Makes docs/hostile.md from the last results, which are kept beside as ``results.json``."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from integration.chaos.page import plain
from integration.chaos.probe import STATE_SECONDS
from integration.harness import versions
from integration.hostile.vm.attacks import ROWS, Extent, Row
from integration.hostile.vm.play import KILL_ENDS, MOST_MIB, Result

PATH: Final = Path(__file__).parents[3] / "docs/hostile.md"
_FILE: Final = Path(__file__).parent / "results.json"
_HEAD: Final = """\
<!-- made by `integration/long hostile`; do not edit -->

# A hostile agent

What is seen when the agent of a running container turns hostile, by `ctr` on a real containerd, a real daemon and a real virtual
machine: a channel of ours between QEMU and the daemon lets everything pass until the container runs, and then answers in the
guest's place. What each attack says is in `integration/hostile/agent/guest.py`, the table in `integration/hostile/vm/attacks.py`.
The same attacks against a pod in memory, on both event loops and at Create too, are `integration/hostile/agent`.

In every row all verbs are called at once while the attack is on; State is asked without a pause and answers within {state:g} s;
what does not end by itself ends within {kill:g} s of Kill; no RPC but Wait outlives its deadline; nobody is told exit status 0
unless the agent said so by a valid answer; `kata-shimd why` names the cause; the daemon grows by less than {most:g} MiB; nothing is
left on the host; the same id runs again.

Found by this, now `kata_shimd/ttrpc/test_calls.py`'s: on uvloop a connection that was reset with bytes still to be read was not
noticed, and a Delete waited three minutes for output that could not come.
"""


def keep(results: Sequence[Result]) -> None:
    """Keep them in the place of earlier ones of the same rows, and write the page."""
    rows = {(row["extent"], row["name"]): row for row in (*kept()["rows"], *map(asdict, results))}
    known = [rows[row.extent, row.name] for row in ROWS if (row.extent, row.name) in rows]
    every = {"when": versions.line(), "rows": known}
    _FILE.write_text(json.dumps(every, indent=1) + "\n")
    PATH.write_text(render(every))


def kept() -> Mapping[str, Any]:
    return dict(json.loads(_FILE.read_text())) if _FILE.exists() else {"rows": []}


def render(results: Mapping[str, Any]) -> str:
    """The whole page. A row of the table that was not played is said to be so."""
    rows = {(row["extent"], row["name"]): row for row in results["rows"]}
    good = sum(not row["complaints"] for row in rows.values())
    parts = [
        _HEAD.format(state=STATE_SECONDS, kill=KILL_ENDS, most=MOST_MIB),
        f"{results['when']}: {good} of {len(ROWS)} as expected.",
    ]
    for extent in Extent:
        parts += [f"## Attacked: {extent}", "\n".join(_table(extent, rows))]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _table(extent: Extent, rows: Mapping[tuple[str, str], Mapping[str, Any]]) -> Iterator[str]:
    yield "| attack | Kill | exit | `why` | State, slowest of | grew, MiB | |"
    yield "|---|---|---|---|---|---|---|"
    for row in ROWS:
        if row.extent is extent:
            yield _line(row, rows.get((extent, row.name)))


def _line(row: Row, result: Mapping[str, Any] | None) -> str:
    killed = "sent" if row.kill else "not sent"
    if result is None:
        return f"| {row.name} | {killed} | | | | | not played |"
    verdict = "ok" if not result["complaints"] else "**FAILED**: " + plain("; ".join(result["complaints"]))
    state = f"{result['state_ms']} ms, {result['asked']}"
    why = f"{result['rule']}: {plain(result['sentence'])}"
    return f"| {row.name} | {killed} | {result['code']} | {why} | {state} | {result['mib']} | {verdict} |"
