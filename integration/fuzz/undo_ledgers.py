"""Fuzz of the launcher's ``undo``: random ledgers and a pod directory that a hostile guest has laid links in.

    python -m integration.fuzz.undo_ledgers [--count 1000000] [--seed 1]

Runs in namespaces of its own (mounts, network, processes) where everything but the test's directory is read-only. Permitted: exit
code 1, something would not go. Also required: no other code (a panic's is 101), and nothing outside the pod directory has changed,
though every path begins with the pod's. Needs root, and the launcher (``KATA_SHIMD_LAUNCHER``).
"""

import json
import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from integration.fuzz import mutate
from integration.fuzz.engine import Target, main
from integration.fuzz.ledger_lines import kept

_PREFIX: Final = Path(os.environ.get("KATA_SHIMD_PREFIX", "/opt/kata-shimd"))
LAUNCHER: Final = Path(os.environ.get("KATA_SHIMD_LAUNCHER", _PREFIX / "bin/containerd-shim-kata-v2"))

#: $1 is the test's directory, $2 the launcher. One line in, one undo, its exit code out.
_SANDBOX: Final = """
set -e
mount --make-rprivate /
mount --bind "$1" "$1"
mount -o remount,ro,bind /
mount -t tmpfs tmpfs /sys
mount -t proc proc /proc
while read -r _; do
    mount --bind "$1/outside" "$1/pod/shared/c1/m"
    "$2" undo "$1/pod" 2>/dev/null && code=0 || code=$?
    while umount -l "$1/pod/shared/c1/m" 2>/dev/null; do :; done
    echo "$code"
done
"""
_PLAIN: Final = ("shared", "c1", "m", "out", "up", "self", "canary", "d", "rootfs")
_ODD: Final = ("..", ".", "", "x" * 300, "é", "\0")
_KINDS: Final = ("dir", "file", "mount", "netns", "process")
_OTHERS: Final = ("cgroup", "link", "later")


class Complaint(Exception):
    """undo says that something would not go."""


def make(rng: random.Random) -> bytes:
    """Lines with paths that begin with POD, which stands for the pod's directory."""
    lines: list[Any] = [json.loads(line) for line in kept()[-1].splitlines()[:1]]
    for n in range(1, rng.randrange(2, 8)):
        lines.append(_plan(rng, n))
        if rng.random() < 0.3:
            lines.append(
                {"op": rng.choice(("made", "undone")), "n": rng.randrange(8), "pid": rng.randrange(-2, 9), "start": 1}
            )
    if rng.random() < 0.7:
        lines.append({"op": "plan", "n": 9, "kind": "mount", "path": "POD/shared/c1/m"})
    data = "".join(json.dumps(line) + "\n" for line in lines).encode()
    return mutate.data(rng, data) if rng.random() < 0.2 else data


def _plan(rng: random.Random, n: int) -> Mapping[str, Any]:
    path = "/".join(("POD", *(rng.choice(_ODD if rng.random() < 0.1 else _PLAIN) for _ in range(rng.randrange(1, 5)))))
    needs = [rng.randrange(8) for _ in range(rng.choice((0, 0, 0, 1)))]
    scope = rng.choice(("pod", "container/c1", "container/../.."))
    rest = {"path": path, "what": "x", "name": "lo", "netns": rng.choice((None, path)), "grace_ms": 1}
    return {
        "op": "plan",
        "n": n,
        "scope": scope,
        "kind": rng.choice(_OTHERS if rng.random() < 0.1 else _KINDS),
        "needs": needs,
        **rest,
    }


class _Arena:
    """``pod`` as a guest would leave it, and ``outside`` which must stay as it is."""

    def __init__(self, root: Path) -> None:
        self.root, self.pod, self.outside = root, root / "pod", root / "outside"
        (self.outside / "d").mkdir(parents=True)
        (self.outside / "canary").write_text("sings")
        (self.outside / "d" / "canary").write_text("sings too")
        self._before = self.picture()

    def lay(self, ledger: bytes) -> None:
        shutil.rmtree(self.pod, ignore_errors=True)
        inside = self.pod / "shared" / "c1" / "m"
        inside.mkdir(parents=True)
        self.pod.chmod(0o700)
        (inside.parent / "out").symlink_to(self.outside)
        (self.pod / "shared" / "up").symlink_to("../..")
        (self.pod / "shared" / "self").symlink_to(".")
        (self.pod / "out").symlink_to("../outside")
        file = self.pod / "ledger"
        file.touch(mode=0o600)
        file.write_bytes(ledger.replace(b"POD", str(self.pod).encode()))

    def picture(self) -> Mapping[str, tuple[int, str]]:
        files = sorted(self.outside.rglob("*"))
        return {str(path): (path.stat().st_mode, path.read_text() if path.is_file() else "") for path in files}

    def check(self, code: int) -> None:
        assert self.picture() == self._before, "something outside the pod directory has changed"
        assert [entry.name for entry in self.root.iterdir() if entry != self.pod] == ["outside"], "something appeared"
        assert code in (0, 1), f"exit code {code}"
        if code:
            raise Complaint


@contextmanager
def opened() -> Iterator[Callable[[Any], None]]:
    with tempfile.TemporaryDirectory(prefix="kf-") as name:
        arena = _Arena(Path(name))
        argv = [
            "unshare",
            "--mount",
            "--net",
            "--pid",
            "--fork",
            "--kill-child",
            "sh",
            "-c",
            _SANDBOX,
            "sandbox",
            name,
            LAUNCHER,
        ]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as sandbox:
            assert sandbox.stdin is not None and sandbox.stdout is not None

            def check(ledger: bytes) -> None:
                arena.lay(ledger)
                print("go", file=sandbox.stdin, flush=True)
                answer = sandbox.stdout.readline() if sandbox.stdout else ""
                assert answer, "the sandbox has ended"
                arena.check(int(answer))

            yield check
            sandbox.stdin.close()


TARGET: Final = Target("undo_ledgers", (Complaint,), make, opened)

if __name__ == "__main__":
    main(TARGET)
