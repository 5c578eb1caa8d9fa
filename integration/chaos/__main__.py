"""``python -m integration.chaos --all``: plays the matrix and writes docs/failures.md; exit code 1 unless all is as expected."""

import argparse
import itertools
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from integration.chaos import page
from integration.chaos.matrix import CELLS, Expected
from integration.chaos.moments import Moment
from integration.chaos.play import Result, play
from integration.chaos.stage import Stage
from integration.chaos.victims import Victim
from integration.harness import image, leaks, process
from integration.harness.containerd import Containerd
from integration.harness.ctr import Ctr
from integration.harness.host import Host

PAGE = Path(__file__).parents[2] / "docs/failures.md"


def main() -> int:
    parser = argparse.ArgumentParser(description="what is seen when something dies")
    parser.add_argument("--all", action="store_true", help="the whole matrix; writes docs/failures.md")
    parser.add_argument(
        "--victim", type=Victim, choices=list(Victim), action="append", help="these only; writes no page"
    )
    parser.add_argument(
        "--moment", type=Moment, choices=list(Moment), action="append", help="these only; writes no page"
    )
    arguments = parser.parse_args()
    if not (arguments.all or arguments.victim or arguments.moment):
        parser.error("say --all, --victim or --moment")
    process.become_subreaper()
    chosen = itertools.product(arguments.victim or list(Victim), arguments.moment or list(Moment))
    cells = [cell for cell in chosen if isinstance(CELLS[cell], Expected)]
    with _stage() as (stage, scene):
        results = {cell: _play(stage, scene, *cell) for cell in cells}
    if arguments.all and not (arguments.victim or arguments.moment):
        PAGE.write_text(page.render(results))
    return 1 if any(result.complaints for result in results.values()) else 0


@contextmanager
def _stage() -> Iterator[tuple[Stage, leaks.Scene]]:
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
