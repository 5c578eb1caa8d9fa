"""Our pods as they stand on disk: identity, ledger, journal, and the processes that the ledger names."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from integration.harness import process
from integration.harness.host import Host
from integration.harness.process import Process
from integration.harness.scale import SCALE
from integration.harness.shelf import PLACE
from integration.harness.waiting import eventually
from kata_shimd.config import defaults
from kata_shimd.journal import read as read_journal
from kata_shimd.ledger import Phase, State
from kata_shimd.ledger import read as read_ledger


def pod_hash(address: str, namespace: str, sandbox_id: str) -> str:
    """The pod's name on disk (docs/contracts.md)."""
    return hashlib.sha256(f"{address}\0{namespace}\0{sandbox_id}".encode()).hexdigest()[:20]


#: For pods of tests that are about boots, and about clones.
BOOTED: Final = "[factory]\nenable_template = false\n"
CLONED: Final = "[factory]\nenable_template = true\n"


def guest_config(directory: Path) -> Path | None:
    """A configuration with the guest of KATA_SHIMD_GUEST, and templates as KATA_SHIMD_TEMPLATES has them, "on" or "off"; None where
    neither is said, so for the installed guest and the product's defaults.
    """
    guest = os.environ.get("KATA_SHIMD_GUEST")
    if not (guest or factory()):
        return None
    config = directory / "guest.toml"
    config.write_text(factory() + (f'[shimd]\nguest_dir = "{guest}"\n' if guest else ""))
    return config


def factory() -> str:
    """The table of a configuration that says what KATA_SHIMD_TEMPLATES does; empty where that says nothing."""
    if "KATA_SHIMD_TEMPLATES" not in os.environ:
        return ""
    return CLONED if are_cloned() else BOOTED


def are_cloned() -> bool:
    """Whether pods of tests that say nothing of it are clones."""
    said = os.environ.get("KATA_SHIMD_TEMPLATES")
    return said == "on" if said else defaults().factory.enable_template


#: Keys of templates that were made at the usual place in this session, by the text of the configuration.
_made: dict[str, str] = {}


def make_template(host: Host, program: Path, config: Path | None) -> None:
    """That of pods with ``config``, unless this session has it: without it the first of them would be booted, and it would be made
    beside some test.
    """
    text, which = (config.read_text(), ("--config", config)) if config else ("", ())
    if (key := _made.get(text)) and (host.inside / PLACE.relative_to("/") / key).is_dir():
        return
    done = host.run([program, "template", "build", "--run-dir", host.run_dir, *which], within=120 * SCALE)
    assert done.returncode == 0, done.stderr.decode()
    _made[text] = done.stdout.decode().split()[0]


def making_templates() -> list[Process]:
    """Makers of templates at work: they are the node's, and none of a pod's."""
    return [found for found in process.descendants() if found.alive() and " template build --order " in found.command()]


@dataclass(frozen=True, slots=True)
class Pod:
    """One pod, live or dead."""

    run_dir: Path
    name: str

    @property
    def directory(self) -> Path:
        return self.run_dir / "pods" / self.name

    def ledger(self) -> State:
        return read_ledger(self.directory)

    def journal(self) -> list[dict[str, Any]]:
        return read_journal(self.run_dir / "journal" / f"{self.name}.jsonl")

    def process(self, what: str) -> Process:
        """The live process recorded as ``what`` (daemon, qemu, virtiofsd).

        :raises LookupError: no such record, or its process is gone; names what is recorded
        """
        recorded = {str(r.fields.get("what")): r.fields for r in self.ledger().live.values() if r.kind == "process"}
        fields = recorded.get(what, {})
        process = self.outside(Process(int(fields.get("pid", 0)), int(fields.get("start", 0))))
        if not process.pid or not process.alive():
            raise LookupError(f"pod {self.name} has no live {what}; recorded: {sorted(recorded)}")
        return process

    def outside(self, recorded: Process) -> Process:
        """The process that the ledger means, with the number that we know it by; number 0 when there is none."""
        return recorded

    def await_phase(self, phase: Phase, *, within: float = 30 * SCALE) -> None:
        eventually(f"pod {self.name} {phase}", lambda: self.ledger().phase == phase, within=within)


def all_pods(run_dir: Path) -> list[Pod]:
    """Every pod that has a directory."""
    return [Pod(run_dir, path.name) for path in sorted((run_dir / "pods").glob("*"))]


def attachments(run_dir: Path, *, since: float = 0.0) -> dict[str, str]:
    """What to show when a test has failed: title → text of journals and captured output, each cut to its end.

    :param since: unix time; journals in which nothing happened after it are left out
    """
    journals = [file for file in sorted((run_dir / "journal").glob("*.jsonl")) if file.stat().st_mtime >= since]
    found = journals + [file for pod in all_pods(run_dir) for file in _outputs(pod.directory)]
    return {str(file.relative_to(run_dir)): _tail(file) for file in found}


def _outputs(pod_dir: Path) -> list[Path]:
    names = ("ledger", "daemon.stderr", "qemu.stderr", "virtiofsd.stderr", "console.log")
    return [pod_dir / name for name in names if (pod_dir / name).is_file()]


def _tail(file: Path, size: int = 16384) -> str:
    try:
        return file.read_bytes()[-size:].decode(errors="replace")
    except OSError as error:
        return f"(unreadable: {error.strerror})"
