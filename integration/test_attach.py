"""``kata-shimd attach`` and ``qmp`` on a live pod: a person looks inside, and containerd notices nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from integration.harness import process
from integration.harness.ctr import PATIENCE, Ctr
from integration.harness.host import Host
from integration.harness.pods import Pod, pod_hash
from integration.harness.waiting import eventually

pytestmark = pytest.mark.vm

#: Blocks the daemon's loop until a file is there: a loop that turns no more, as a bug would have it.
BLOCK: Final = """
import time, pathlib
def a_bug_of_ours():
    while not pathlib.Path({path!r}).exists():
        time.sleep(0.05)
a_bug_of_ours()
"""


class Pair:
    """A pod and the command that looks into it."""

    def __init__(self, host: Host, pod: Pod, name: str) -> None:
        self.host, self.pod, self.name = host, pod, name

    def argv(self, verb: str, *words: str) -> list[str]:
        return [
            sys.executable,
            "-m",
            "kata_shimd.cli",
            verb,
            self.pod.name,
            *words,
            "--run-dir",
            str(self.host.run_dir),
        ]

    def ask(self, verb: str, *words: str, stdin: str = "", code: int = 0) -> str:
        argv = self.argv(verb, *words)
        done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=PATIENCE, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    @property
    def events(self) -> list[str]:
        return [entry["event"] for entry in self.pod.journal()]


@pytest.fixture(scope="module", params=["asyncio", "uvloop"])
def pair(
    ctr: Ctr, host: Host, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Pair]:
    config = tmp_path_factory.mktemp("attach") / "configuration.toml"
    config.write_text(f'[shimd]\nevent_loop = "{request.param}"\n')
    name = f"attach-{request.param}"
    ctr(*ctr.run_words(name, "sleep", "86400", options=["--detach", "--null-io"], config=config)).ok()
    yield Pair(host, Pod(host.run_dir, pod_hash(str(ctr.containerd.address), ctr.namespace, name)), name)
    ctr.remove(name)


def test_a_person_sees_the_live_pod(pair: Pair, ctr: Ctr) -> None:
    assert pair.ask("attach", "-c", "list(pod.containers)") == f"[{pair.name!r}]\n"
    script = f"""
stats = await pod.stats({pair.name!r})
print(type(stats).__name__, stats.cgroup_stats.pids_stats.current)
rpcs()
ledger()
journal(3)
tasks()
"""
    said = pair.ask("attach", stdin=script)
    assert said.splitlines()[0] == "StatsContainerResponse 1"
    assert "process" in said and '"what": "qemu"' in said, "the ledger"
    assert '"event"' in said, "the journal"
    assert "publisher" in said, "the tasks"
    assert ctr.tasks()[pair.name][1] == "RUNNING"


def test_a_call_that_waits_is_seen(pair: Pair, ctr: Ctr) -> None:
    client = ctr.spawn("task", "exec", "--exec-id", "seen", pair.name, "sh", "-c", "echo up; exec sleep 86400")
    assert client.stdout is not None
    try:
        assert client.stdout.readline() == b"up\n"
        eventually("the exec waits", lambda: '"rpc": "Wait"' in pair.ask("attach", "-c", "rpcs()"), within=PATIENCE)
    finally:
        ctr("task", "kill", "--exec-id", "seen", "--signal", "SIGKILL", pair.name).ok()
        assert client.wait(PATIENCE) == 137
        process.finish(client)


def test_what_fails_fails_here_only(pair: Pair, ctr: Ctr) -> None:
    said = pair.ask("attach", stdin="1 / 0\nprint('never')\n", code=1)
    assert "ZeroDivisionError" in said and "never" not in said
    pair.ask("attach", "-c", "raise SystemExit", code=1)
    assert ctr.tasks()[pair.name][1] == "RUNNING"


def test_a_blocked_loop_is_told_with_its_stack(pair: Pair, tmp_path: Path) -> None:
    """The first session blocks the loop; the second is answered all the same, and names the line."""
    release = tmp_path / "release"
    blocker = process.spawn(
        pair.argv("attach", "-c", BLOCK.format(path=str(release))), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        said = eventually(
            "the stack of what blocks",
            lambda: said if "a_bug_of_ours" in (said := pair.ask("attach", "--stacks")) else None,
            within=PATIENCE,
        )
        assert said is not None and "thread MainThread, now in:" in said
        begin = time.monotonic()
        waiting = process.spawn(pair.argv("attach", "-c", "'turns again'"), stdout=subprocess.PIPE)
        assert waiting.stdout is not None
        first = waiting.stdout.readline().decode()
        assert "The loop has not turned" in first and time.monotonic() - begin < PATIENCE
    finally:
        release.touch()
        process.finish(blocker)
    rest, _ = waiting.communicate(timeout=PATIENCE)
    assert rest.decode().endswith("'turns again'\n")


def test_every_attach_is_on_record(pair: Pair, ctr: Ctr) -> None:
    before = pair.events.count("attached")
    pair.ask("attach", "-c", "1")
    eventually(
        "the end of the session",
        lambda: pair.events.count("detached") == pair.events.count("attached"),
        within=PATIENCE,
    )
    assert pair.events.count("attached") == before + 1
    assert "has the interpreter" in ctr.containerd.log_from(0)


def test_qmp(pair: Pair) -> None:
    assert json.loads(pair.ask("qmp", "query-status"))["status"] == "running"
    lines = 'query-name\nhuman-monitor-command {"command-line": "info version"}\n'
    assert "guest" not in pair.ask("qmp", stdin=lines)
    pair.ask("qmp", "no-such-command", code=1)
    pair.ask("qmp", "query-status", "[]", code=2)


def test_an_idle_signal_turns_nothing_else(pair: Pair, ctr: Ctr) -> None:
    os.kill(pair.pod.process("daemon").pid, signal.SIGUSR2)
    assert ctr.tasks()[pair.name][1] == "RUNNING"


def test_a_configuration_that_allows_none(ctr: Ctr, host: Host, name: str, tmp_path: Path) -> None:
    (config := tmp_path / "configuration.toml").write_text('[shimd]\nattach = "never"\n')
    ctr(*ctr.run_words(name, "sleep", "86400", options=["--detach", "--null-io"], config=config)).ok()
    try:
        pod = Pod(host.run_dir, pod_hash(str(ctr.containerd.address), ctr.namespace, name))
        pair = Pair(host, pod, name)
        assert not (Path(pod.directory) / "attach.sock").exists()
        pair.ask("attach", "-c", "1", code=1)
        os.kill(pod.process("daemon").pid, signal.SIGUSR2)
        assert ctr.tasks()[name][1] == "RUNNING"
    finally:
        ctr.remove(name)
