"""The stage of `integration.keeper.verbs` with its launcher, its daemon and its machine under a systemd of their own."""

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from integration.harness.scale import SCALE
from integration.harness.waiting import eventually
from integration.keeper.verbs.stage import Stage
from integration.launcher.shim import Answer, Shim
from integration.systemd.manager import RUNTIME, Systemd

#: For a killed daemon's successor to be on record and to serve.
REBORN: Final = 15.0 * SCALE


class InsideShim(Shim):
    """A launcher that is run in there."""

    def __init__(self, launcher: Path, root: Path, systemd: Systemd) -> None:
        super().__init__(launcher, root)
        self._systemd = systemd

    def run(
        self,
        argv: Sequence[str],
        *,
        cwd: Path | None = None,
        stdin: bytes = b"",
        environ: Mapping[str, str] | None = None,
    ) -> Answer:
        inside = ["env", f"--chdir={cwd}", *argv]
        env = {"PATH": self._systemd.env["PATH"], "KATA_SHIMD_RUN_DIR": str(self.run_dir), **(environ or {})}
        done = subprocess.run(
            self._systemd.argv(inside), input=stdin, env=env, capture_output=True, timeout=100, check=False
        )
        return Answer(done.returncode, done.stdout, done.stderr.decode())


class UnitStage(Stage):
    """One pod that is a unit."""

    KEEPER = "systemd"

    def __init__(self, root: Path, systemd: Systemd) -> None:
        self.systemd = systemd
        self.root = root
        super().__init__(root)

    def make_shim(self, launcher: Path) -> Shim:
        return InsideShim(launcher, self.root, self.systemd)

    @property
    def unit(self) -> str:
        return f"kata-pod@{self.pod.name}.service"

    def pid(self, what: str) -> int:
        """As it is in there, by the ledger."""
        live = self.pod.ledger().live.values()
        return int(next(record.fields.get("pid", 0) for record in live if record.fields.get("what") == what))

    def kill(self, what: str, signal: str = "KILL") -> None:
        self.systemd.kill(self.pid(what), signal)

    def surroundings(self) -> dict[str, str]:
        """What the kernel says of where the daemon lives, and as what."""
        proc = self.systemd.inside / "proc" / str(self.pid("daemon"))
        texts = {name: (proc / name).read_text() for name in ("limits", "cgroup", "oom_score_adj", "status")}
        status = dict(line.split(":\t", 1) for line in texts.pop("status").splitlines() if ":\t" in line)
        spaces = {name: (proc / "ns" / name).readlink().name for name in ("mnt", "net", "pid", "cgroup")}
        kept = ("Umask", "PPid", "Seccomp", "CapEff", "SigIgn", "SigBlk", "NoNewPrivs")
        nice = (proc / "stat").read_text().rpartition(")")[2].split()[16]
        return (
            texts
            | spaces
            | {name: status[name] for name in kept}
            | {"cwd": str((proc / "cwd").readlink()), "nice": nice}
        )

    def births(self) -> int:
        return sum(event["event"] == "daemon" for event in self.pod.journal())

    def deaths(self) -> int:
        lines = self.shim.ledger("pod")
        (daemon,) = (line["n"] for line in lines if line.get("what") == "daemon")
        return sum(line["op"] == "made" and line["n"] == daemon for line in lines) - 1

    def kill_daemon(self) -> None:
        """SIGKILL; returns when another serves."""
        before, served = self.pid("daemon"), self.served()
        self.kill("daemon")
        eventually("another daemon", lambda: self.pid("daemon") != before and self.served() > served, within=REBORN)

    def served(self) -> int:
        """How many daemons have come as far as to serve."""
        return sum(event["event"] == "agent-ready" for event in self.pod.journal())

    def state(self, name: str = "ActiveState") -> str:
        return self.systemd.show(self.unit, name)

    def is_gone(self) -> bool:
        """Nothing of the pod is left, on disk or in systemd."""
        return not self.shim.left() and not self.systemd.drop_ins() and not self.systemd.units()


def install(systemd: Systemd, prefix: Path) -> None:
    """The units of an installation, as `kata-shimd systemd install` lays them down."""
    words = [prefix / "bin/python3", "-m", "kata_shimd.cli", "systemd", "install", "--directory", RUNTIME]
    done = systemd.run(words)
    assert done.returncode == 0, done
