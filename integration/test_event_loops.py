"""Both event loops, on real machines: what a daemon does all day, and the one thing that must not go wrong."""

import hashlib
from pathlib import Path
from random import Random
from typing import Final

import pytest

from integration.harness import process
from integration.harness.ctr import PATIENCE, Ctr
from integration.harness.pods import Pod, pod_hash
from integration.harness.scale import SCALE

pytestmark = pytest.mark.vm

MIB: Final = 1 << 20
#: From the death of the machine to the client's exit code.
NOTICED: Final = 10.0 * SCALE


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_run_exec_stdio_and_the_death_of_qemu(ctr: Ctr, name: str, tmp_path: Path, loop: str) -> None:
    config = tmp_path / "configuration.toml"
    config.write_text(f'[shimd]\nevent_loop = "{loop}"\n')
    client = ctr.spawn(*ctr.run_words(name, "sh", "-c", "echo up; exec sleep 86400", options=["--rm"], config=config))
    try:
        assert client.stdout is not None and client.stderr is not None
        assert client.stdout.readline() == b"up\n", client.stderr.read()
        pod = Pod(ctr.containerd.host.run_dir, pod_hash(str(ctr.containerd.address), ctr.namespace, name))
        assert _runs_on(pod) == loop
        failed = ctr.exec(name, "e1", "sh", "-c", "echo out; echo err >&2; exit 3")
        assert (failed.code, failed.out, failed.err) == (3, "out", "err")
        data = Random(3).randbytes(4 * MIB)
        back = ctr.exec(name, "e2", "cat", input=data, within=2 * PATIENCE).ok().stdout
        assert hashlib.sha256(back).digest() == hashlib.sha256(data).digest()
        pod.process("qemu").kill()
        assert client.wait(NOTICED) == 255
    finally:
        process.finish(client)
        ctr.remove(name)


def _runs_on(pod: Pod) -> str:
    """By what the daemon has mapped: a loop that is not used is not imported."""
    return "uvloop" if "/uvloop/" in (pod.process("daemon").proc / "maps").read_text() else "asyncio"
