"""``python -m integration.chaos --all``: plays the matrix and writes docs/failures.md; exit code 1 unless all is as expected."""

import argparse
import itertools
import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from integration.chaos import page
from integration.chaos.matrix import CELLS, Expected
from integration.chaos.moments import Moment
from integration.chaos.play import Result, play
from integration.chaos.stage import Stage
from integration.chaos.victims import Victim
from integration.harness import image, leaks, process, revision
from integration.harness.containerd import Containerd
from integration.harness.ctr import Ctr
from integration.harness.host import Host

PAGE = Path(__file__).parents[2] / "docs/failures.md"


def main() -> int:
    parser = argparse.ArgumentParser(description="what is seen when something dies")
    parser.add_argument("--all", action="store_true", help="the whole matrix; writes docs/failures.md")
    parser.add_argument("--victim", type=Victim, choices=list(Victim), action="append", help="these only; no page")
    parser.add_argument("--moment", type=Moment, choices=list(Moment), action="append", help="these only; no page")
    parser.add_argument("--jobs", type=int, default=2, help="rows of the matrix played at once with --all (2)")
    parser.add_argument("--results", type=Path, help="keep results: with --all or --page a directory, else a file")
    parser.add_argument("--page", action="store_true", help="write docs/failures.md from the results in DIR alone")
    arguments = parser.parse_args()
    if arguments.all or arguments.page:
        with _kept(arguments.results) as directory:
            return _all(directory, 0 if arguments.page else arguments.jobs)
    if not (arguments.victim or arguments.moment):
        parser.error("say --all, --page, --victim or --moment")
    return _some(arguments.victim or list(Victim), arguments.moment or list(Moment), arguments.results)


@contextmanager
def _kept(directory: Path | None) -> Iterator[Path]:
    """A directory for the rows' results, which goes unless it was asked for."""
    with tempfile.TemporaryDirectory() as temporary:
        chosen = directory or Path(temporary)
        chosen.mkdir(exist_ok=True)
        yield chosen


def _all(directory: Path, jobs: int) -> int:
    """A process for each row, with a private machine of its own; then the page. With no ``jobs``, the page alone."""
    revision.revision()  # what is played, and not what has become of it when the last row is over
    files = [directory / victim.name for victim in Victim]
    if jobs:
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(_row, Victim, files))
    results = [result for file in files for result in read(file)]
    PAGE.write_text(page.render({(result.victim, result.moment): result for result in results}))
    expected = sum(isinstance(cell, Expected) for cell in CELLS.values())
    good = sum(not result.complaints for result in results)
    sys.stdout.write(f"{good} of {expected} cells as expected: {PAGE}\n")
    return 0 if good == expected else 1


def _row(victim: Victim, file: Path) -> None:
    subprocess.run([sys.executable, "-m", "integration.chaos", "--victim", victim, "--results", file], check=False)


def _some(victims: list[Victim], moments: list[Moment], file: Path | None) -> int:
    process.become_subreaper()
    cells = [cell for cell in itertools.product(victims, moments) if isinstance(CELLS[cell], Expected)]
    with surroundings() as (stage, scene):
        results = [_play(stage, scene, *cell) for cell in cells]
    if file is not None:
        file.write_text(json.dumps([asdict(result) for result in results]))
    return 1 if any(result.complaints for result in results) else 0


def read(file: Path) -> list[Result]:
    """The results in a file; a row that broke off has none."""
    rows = json.loads(file.read_text()) if file.exists() else []
    return [
        Result(
            **{
                **row,
                "victim": Victim(row["victim"]),
                "moment": Moment(row["moment"]),
                "complaints": tuple(row["complaints"]),
            }
        )
        for row in rows
    ]


@contextmanager
def surroundings() -> Iterator[tuple[Stage, leaks.Scene]]:
    """A private machine with containerd, warmed up by one pod, and what the leak check looks at."""
    prefix = Path(os.environ.get("KATA_SHIMD_PREFIX", "/opt/kata-shimd"))
    with Host([prefix / "bin"]) as host, Containerd(host) as containerd:
        image.write_image(archive := host.root / "image.tar")
        ctr = Ctr(containerd, f"t{secrets.token_hex(4)}", image=image.NAME)
        ctr("image", "import", archive).ok()
        scene, stage = leaks.Scene(host, ctr.namespace, containerd), Stage(host, containerd, ctr)
        # The first pod makes directories that every later one shares.
        stage.ctr.run("first", "true").ok()
        try:
            yield stage, scene
        finally:
            leaks.forget_namespace(scene)


def _play(stage: Stage, scene: leaks.Scene, victim: Victim, moment: Moment) -> Result:
    """A play that breaks off is a result too: the others are still to be played."""
    name = f"{victim.name.lower()}-{moment.name.lower()}"
    try:
        result = play(stage, scene, victim, moment, name)
    except Exception as error:
        complaint = f"broke off: {type(error).__name__}: {error}"
        result = Result(victim, moment, -1, "", "", "", 0.0, (complaint,))
        stage.remove(name, f"{name}-pod")
    sys.stdout.write(f"{victim}, {moment}: {result.code} {result.said!r} {result.rule} {result.seconds:.1f} s\n")
    sys.stdout.writelines(f"    {complaint}\n" for complaint in result.complaints)
    sys.stdout.flush()
    return result


if __name__ == "__main__":
    sys.exit(main())
