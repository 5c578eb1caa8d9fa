"""Every check of the project as a table, run in two lanes side by side: one for Python and the real machines, one for Rust.

The first lane's output is shown as it comes, because pytest's progress is what one waits for; the other lane compiles, and says
something only when it fails. A check fails by its exit status alone, and a failed one never stops the others.

A few integration tests that fail are run a second time, alone, for whoever looks into them: one that passes then depends on chance,
on load or on what came before it. The run has failed all the same, for what is seen once in thirty times is a defect, too.
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from integration.harness import failures
from integration.harness.failures import Failure
from integration.harness.install import GUEST, REPOSITORY, Layout
from integration.harness.scale import SCALE

CRATES: Final = ("launcher", "guest/init", "guest/agent")
#: A test that takes longer shows where it stands; the slowest moves 500 containers through one pod.
STUCK_AFTER: Final = round(300 * SCALE)
#: More failures than this have a cause in common, and no second look.
FEW: Final = 3
TOLD: Final = ("-p", "integration.harness.failures")


@dataclass(frozen=True, slots=True)
class Check:
    """One program to run; status 0 is good."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    directory: Path = REPOSITORY


@dataclass(frozen=True, slots=True)
class Outcome:
    check: Check
    status: int
    seconds: float


def python_lane(layout: Layout) -> list[Check]:
    """Quick ones first: a slip in the style is known in seconds."""
    python = str(layout.dev_python)
    unit = (python, "-m", "pytest", *TOLD, "-q", "kata_shimd")
    return [
        Check("ruff check", (python, "-m", "ruff", "check", ".")),
        Check("ruff format", (python, "-m", "ruff", "format", "--check", ".")),
        Check("mypy --strict", (python, "-m", "mypy")),
        Check("unit tests on asyncio", unit),
        Check("unit tests on uvloop", (*unit, "-p", "integration.harness.on_uvloop")),
        integration(layout, ["integration"]),
    ]


def integration(layout: Layout, arguments: Sequence[str]) -> Check:
    """pytest on whatever was asked for, durations shown."""
    stuck = f"faulthandler_timeout={STUCK_AFTER}"
    argv = (str(layout.dev_python), "-m", "pytest", *TOLD, "-o", stuck, "--durations=15", *arguments)
    return Check("integration tests", argv)


def worth_a_second_look(failed: Sequence[Failure]) -> bool:
    """Whether `failed` are so few, on real machines, that each may have been the host's slowness."""
    real = all(one.test.startswith("integration/") and one.phase != "collection" for one in failed)
    return real and 0 < len(failures.tests(failed)) <= FEW


def second_look(layout: Layout, failed: Sequence[Failure]) -> Outcome:
    """Run the failed tests alone. Whatever comes of it, they have failed."""
    again = replace(integration(layout, failures.tests(failed)), name="those that failed, alone")
    return _run(again, True, threading.Lock())


def rust_lane(layout: Layout) -> list[Check]:
    """Formatting, lints and tests of each crate; build results are kept between runs."""
    checks: list[Check] = []
    for crate in CRATES:
        env = {"CARGO_TARGET_DIR": str(layout.cache / "cargo-test" / Path(crate).name), "CARGO_TERM_COLOR": "never"}
        where = REPOSITORY / crate
        checks += [
            Check(f"{crate}: cargo fmt", ("cargo", "fmt", "--check"), env, where),
            Check(
                f"{crate}: cargo clippy",
                ("cargo", "clippy", "--quiet", "--all-targets", "--all-features", "--", "--deny", "warnings"),
                env,
                where,
            ),
            Check(f"{crate}: cargo test", ("cargo", "test", "--quiet"), env, where),
        ]
    return [*checks, _agent_scenarios(layout)]


def _agent_scenarios(layout: Layout) -> Check:
    """The agent as a process of this host and, in machines with the installed guest, as process 1; with its quick tests' build."""
    quick = layout.cache / "cargo-test/agent"
    env = {"CARGO_TARGET_DIR": str(quick), "CARGO_TERM_COLOR": "never", "KATA_GUEST_DIR": str(GUEST)}
    argv = ("cargo", "test", "--quiet", "--features", "integration", "--test", "agent-host", "--test", "agent-guest")
    return Check("guest/agent: scenarios on host and guest", argv, env, REPOSITORY / "guest/agent")


def run(lanes: Mapping[str, tuple[Sequence[Check], bool]]) -> list[Outcome]:
    """Run lanes (name → checks, whether output is shown as it comes) side by side; outcomes lane by lane."""
    printing = threading.Lock()
    with ThreadPoolExecutor(len(lanes)) as pool:
        running = [pool.submit(_lane, checks, shown, printing) for checks, shown in lanes.values()]
    return [outcome for lane in running for outcome in lane.result()]


def table(outcomes: Sequence[Outcome]) -> str:
    """What took how long, and what failed."""
    width = max(len(outcome.check.name) for outcome in outcomes)
    rows = [f"  {o.check.name:{width}}  {o.seconds:7.1f} s  {'FAILED' if o.status else 'ok'}" for o in outcomes]
    return "\n".join(rows)


def _lane(checks: Sequence[Check], shown: bool, printing: threading.Lock) -> list[Outcome]:
    return [_run(check, shown, printing) for check in checks]


def _run(check: Check, shown: bool, printing: threading.Lock) -> Outcome:
    begin = time.monotonic()
    if shown:
        print(f"== {check.name}", flush=True)
    where = None if shown else subprocess.PIPE
    try:
        done = subprocess.run(
            check.argv,
            cwd=check.directory,
            env=os.environ | dict(check.env),
            stdin=subprocess.DEVNULL,
            stdout=where,
            stderr=None if shown else subprocess.STDOUT,
            check=False,
        )
        status, said = done.returncode, done.stdout
    except OSError as error:
        status, said = 127, f"{check.argv[0]}: {error.strerror}\n".encode()
    if status != 0:
        with printing:
            print(f"== {check.name} failed with {status}", flush=True)
            sys.stdout.buffer.write(said or b"")
            sys.stdout.flush()
    return Outcome(check, status, time.monotonic() - begin)
