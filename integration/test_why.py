"""``kata-shimd ps``, ``logs`` and ``why`` on real pods: what they say while one runs, and after each way to die."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from integration.harness.ctr import PATIENCE, Ctr
from integration.harness.host import Host
from integration.harness.pods import Pod, pod_hash
from integration.harness.sandbox import SANDBOX, TYPE
from integration.harness.scale import SCALE
from integration.harness.waiting import eventually

pytestmark = pytest.mark.vm

#: A pod's end is told to containerd before the pod is gone.
GONE: Final = 15.0 * SCALE

Ask = Callable[..., str]


@pytest.fixture
def ask(host: Host) -> Ask:
    """The command, from this checkout; its stdout."""

    def run(verb: str, *words: str, code: int = 0) -> str:
        argv = [sys.executable, "-m", "kata_shimd.cli", verb, *words, "--run-dir", str(host.run_dir)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE, check=False)
        assert done.returncode == code, done.stderr
        return done.stdout

    return run


def pod_of(ctr: Ctr, host: Host, name: str) -> Pod:
    return Pod(host.run_dir, pod_hash(str(ctr.containerd.address), ctr.namespace, name))


def verdict(ask: Ask, pod: Pod) -> dict[str, Any]:
    answer = json.loads(ask("why", pod.name, "-o", "json"))
    assert answer["events"][0]["event"] == "daemon"
    return dict(answer["verdict"])


def gone(pod: Pod) -> bool:
    return not Path(pod.directory).exists()


def test_a_pod_that_lives_and_ends_well(ctr: Ctr, host: Host, name: str, ask: Ask) -> None:
    ctr.start(name, "sh", "-c", "while :; do sleep 86400; done", annotations={TYPE: "sandbox", SANDBOX: name})
    pod = pod_of(ctr, host, name)
    try:
        shown = next(item for item in json.loads(ask("ps", "-o", "json"))["pods"] if item["hash"] == pod.name)
        assert (shown["sandbox_id"], shown["phase"], shown["containers"]) == (name, "running", [name])
        assert {item["what"] for item in shown["processes"] if item["alive"]} == {"daemon", "qemu", "virtiofsd"}
        assert verdict(ask, pod)["rule"] == "running"
        assert "Linux version" in ask("logs", name) or ask("logs", name, "-n", "0") == ""
        other = {TYPE: "container", SANDBOX: name}
        assert ctr.run(f"other-{name}", "sh", "-c", "exit 3", annotations=other).code == 3
    finally:
        ctr.remove(name)
    eventually("the pod is gone", lambda: gone(pod), within=GONE)
    assert verdict(ask, pod)["rule"] in ("container-exited", "ended-well")
    said = ask("why", name)
    assert "boot-phase" in said and f"container {name}: status 137" in said
    assert ask("why", f"other-{name}").endswith(
        f"\nNothing went wrong with the pod; container other-{name} exited with status 3.\n"
    )


@pytest.mark.parametrize(
    ("victim", "rule"), [("qemu", "qemu-killed"), ("virtiofsd", "virtiofsd-died"), ("daemon", "daemon-died")]
)
def test_what_was_killed_is_named(ctr: Ctr, host: Host, name: str, ask: Ask, victim: str, rule: str) -> None:
    ctr.start(name, "sh", "-c", "while :; do sleep 86400; done")
    pod = pod_of(ctr, host, name)
    try:
        pod.process(victim).kill()
        eventually(f"why names the {victim}", lambda: verdict(ask, pod)["rule"] == rule, within=GONE)
    finally:
        ctr.remove(name)
    eventually("the pod is gone", lambda: gone(pod), within=GONE)
    assert verdict(ask, pod)["rule"] == rule


def test_a_kernel_that_panics_is_quoted(ctr: Ctr, host: Host, name: str, ask: Ask, tmp_path: Path) -> None:
    config = tmp_path / "configuration.toml"
    config.write_text('[hypervisor.qemu]\nkernel_params = "panic_on_oops=1 rdinit=/no/such/init"\n')
    done = ctr.run(name, "true", config=config)
    assert done.code != 0
    pod = pod_of(ctr, host, name)
    told = verdict(ask, pod)
    assert told["failed"], told
    assert told["rule"] == "guest-panic", told
    assert "Kernel panic" in told["sentence"]
