"""A pod's place on this machine, made and taken away by each test: run directory, ledger, journal, and the one undo.

What a daemon and the launcher would make around a VM is made here by hand, so that the VM's side is tested alone.
"""

import asyncio
import json
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from integration.harness.scale import SCALE
from kata_shimd import journal as journals
from kata_shimd.host.process import Gate
from kata_shimd.journal import Journal
from kata_shimd.ledger import NAME, Ledger
from kata_shimd.vm import accel, machine
from kata_shimd.vm.machine import Machine
from kata_shimd.vm.spec import Budgets, ShareSpec, VmSpec

PREFIX: Final = Path(os.environ.get("KATA_SHIMD_PREFIX", "/opt/kata-shimd"))
LAUNCHER: Final = Path(os.environ.get("KATA_SHIMD_LAUNCHER", PREFIX / "bin/containerd-shim-kata-v2"))
GUEST: Final = Path(os.environ.get("KATA_SHIMD_GUEST", "/var/lib/kata-shimd/guest/current"))
#: The first that exists is used; to test the other one, name it.
VIRTIOFSD: Final = tuple(
    map(Path, os.environ.get("KATA_SHIMD_VIRTIOFSD", "/usr/libexec/virtiofsd:/usr/lib/qemu/virtiofsd").split(":"))
)
POD: Final = "0123456789abcdef0123"

BUDGETS: Final = Budgets(
    qmp=10 * SCALE, dial=30 * SCALE, hello_interval=0.25 * SCALE, quit=2 * SCALE, term=0.25 * SCALE
)

SPEC: Final = VmSpec(
    name="sandbox-test",
    uuid=str(uuid.uuid4()),
    qemu=Path("/usr/bin/qemu-system-x86_64"),
    accelerator=accel.choose().accelerator,
    kernel=GUEST / "vmlinuz",
    initrd=GUEST / "initrd.img",
    image=GUEST / "rootfs.img",
    share=ShareSpec(programs=VIRTIOFSD),
    memory_mib=512,
    max_memory_mib=4096,
    max_vcpus=2,
)


class Site:
    """One pod directory. `close` undoes and asserts that nothing is left."""

    def __init__(self, run: Path | None = None) -> None:
        self.run = run or Path(tempfile.mkdtemp(prefix="ks-"))
        self.pod_dir = self.run / "pods" / POD
        if run is None:
            self._lay_out()
        self.ledger = Ledger(self.pod_dir)
        self.journal = Journal(self.run / "journal" / f"{POD}.jsonl")
        self.gate = Gate(launcher=LAUNCHER)

    def _lay_out(self) -> None:
        # QEMU's user must not need to pass through here: everything it has are descriptors.
        self.run.chmod(0o700)
        self.pod_dir.mkdir(parents=True, mode=0o700)
        opened = {"op": "open", "v": 1, "pod": POD, "namespace": "test", "id": "test", "address": "/nowhere"}
        ledger = self.pod_dir / NAME
        ledger.touch(mode=0o600)
        ledger.write_text(json.dumps(opened) + "\n")

    @asynccontextmanager
    async def booted(self, spec: VmSpec = SPEC, *, budgets: Budgets = BUDGETS, **gate: Any) -> AsyncIterator[Machine]:
        """A running VM, killed at the end if it still lives; it has ended when this is left, however."""
        failure: Exception | None = None
        async with asyncio.TaskGroup() as group:
            try:
                vm = await machine.boot(
                    spec, self.pod_dir, self.ledger, self.journal, replace(self.gate, **gate), group, budgets
                )
                try:
                    yield vm
                finally:
                    vm.kill()
            except Exception as error:  # raised again outside: it must not cancel the watchers
                failure = error
        if failure is not None:
            raise failure

    async def fails(self, spec: VmSpec = SPEC, *, budgets: Budgets = BUDGETS, dial: bool = False) -> Exception:
        """Boot, and dial if asked to, what must fail; the error."""
        try:
            async with self.booted(spec, budgets=budgets) as vm:
                if dial:
                    (await vm.dial()).close()
        except Exception as error:
            return error
        raise AssertionError("it did not fail")

    def events(self, name: str) -> list[dict[str, Any]]:
        return [event for event in journals.read(self.journal.path) if event["event"] == name]

    def undo(self) -> str:
        """What the launcher's undo complains of; empty when all is gone."""
        done = subprocess.run([LAUNCHER, "undo", self.pod_dir], capture_output=True, text=True, timeout=60, check=False)
        return done.stderr.strip() or ("" if done.returncode == 0 else f"status {done.returncode}")

    def close(self) -> None:
        self.ledger.close()
        complaint = self.undo()
        left = [str(path) for path in self.run.rglob("*") if path.is_file() and path.parent.name != "journal"]
        mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(self.run) in line]
        self.journal.close()
        shutil.rmtree(self.run, ignore_errors=bool(mounts))
        assert (complaint, left, mounts) == ("", [], [])
