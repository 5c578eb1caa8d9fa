"""Fuzz of the launcher's own reading of stdin, where containerd 2.3 and later say what they are.

    python -m integration.fuzz.launcher_stdin [--count 1000000] [--seed 1]

The bundle's config.json is no JSON, so every `start` has to fail after it has read stdin and before it makes anything. Permitted:
nothing. Required: exit code 1 (a panic's is 101), a line on stderr, nothing on stdout, and in the run directory nothing but the
journal's line of this refusal. Needs the launcher (``KATA_SHIMD_LAUNCHER``).
"""

import json
import os
import random
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from integration.fuzz import bootstrap
from integration.fuzz.engine import Target, main
from integration.fuzz.undo_ledgers import LAUNCHER

_FLAGS: Final = ("-namespace", "k8s.io", "-id", "s1", "-address", "/nonexistent/c.sock", "start")


@contextmanager
def opened() -> Iterator[Callable[[Any], None]]:
    with tempfile.TemporaryDirectory(prefix="kf-") as name:
        bundle, run_dir = Path(name) / "bundle", Path(name) / "run"
        bundle.mkdir()
        (bundle / "config.json").write_text("[")
        environ = {"PATH": os.environ["PATH"], "KATA_SHIMD_RUN_DIR": str(run_dir)}

        def check(data: bytes) -> None:
            done = subprocess.run(
                [LAUNCHER, *_FLAGS], cwd=bundle, env=environ, input=data, capture_output=True, timeout=20, check=False
            )
            assert (done.returncode, done.stdout) == (1, b""), done
            assert done.stderr.count(b"\n") == 1, done.stderr
            made = [path for path in run_dir.rglob("*") if not path.is_dir()]
            assert [path.parent.name for path in made] == ["journal"], f"it made {made}"
            (line,) = made[0].read_text().splitlines()
            assert json.loads(line)["event"] == "refused", line
            made[0].unlink()

        yield check


def make(rng: random.Random) -> bytes:
    data = bootstrap.make(rng)
    return data * rng.choice((1, 1, 1, 50))


TARGET: Final = Target("launcher_stdin", (), make, opened)

if __name__ == "__main__":
    main(TARGET)
