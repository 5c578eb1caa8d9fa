"""What the kubelet does with a container of a running pod: exec, attach, logs, statistics, restarts, grace periods."""

import re
import time
from collections.abc import Iterator

import pytest

from integration.cri.conftest import STAY, Pods
from integration.harness import process
from integration.harness.crictl import Crictl
from integration.harness.ctr import PATIENCE
from integration.harness.scale import SCALE
from integration.harness.terminal import Terminal
from integration.harness.waiting import eventually


@pytest.fixture(scope="module")
def running(shared: Pods, pod_id: str) -> str:
    return shared.start(pod_id, *STAY, name="running")


@pytest.fixture
def removed(crictl: Crictl) -> Iterator[list[str]]:
    """Containers of a test, by id."""
    ids: list[str] = []
    yield ids
    for container_id in ids:
        crictl("rm", "--force", container_id).ok()


# --- exec ------------------------------------------------------------------------------------------------------------


def test_exec_sync_collects_both_streams(crictl: Crictl, running: str) -> None:
    """crictl shows the one after the other, whichever was written first."""
    done = crictl.exec(running, "sh", "-c", "echo err >&2; echo out").ok()
    assert done.out.split() == ["out", "err"]


@pytest.mark.parametrize("sync", [True, False], ids=["sync", "streamed"])
def test_exec_tells_the_exit_code(crictl: Crictl, running: str, sync: bool) -> None:
    done = crictl.exec(running, "sh", "-c", "exit 3", sync=sync)
    assert done.code != 0
    assert re.search(r"exit (code|status):? 3\b|exited with 3\b", done.err) or done.code == 3, done


def test_exec_sync_with_a_timeout_ends_the_command(crictl: Crictl, running: str) -> None:
    begin = time.monotonic()
    done = crictl("exec", "--sync", "--timeout", "2", running, "sleep", "3600")
    assert done.code != 0
    assert "timeout 2s exceeded" in done.err or "DeadlineExceeded" in done.err, done
    assert time.monotonic() - begin < 15 * SCALE
    assert "3600" not in crictl.exec(running, "ps").ok().out


def test_exec_streamed_passes_stdin(crictl: Crictl, running: str) -> None:
    data = b"x" * 300_000
    assert crictl.exec(running, "wc", "-c", sync=False, input=data).ok().out == "300000"


def test_exec_with_a_terminal(crictl: Crictl, running: str) -> None:
    words = crictl.argv("exec", "--interactive", "--tty", running, "sh")
    with Terminal(crictl.containerd.host, words, rows=31, cols=97) as terminal:
        terminal.expect("# ", within=PATIENCE)
        terminal.send("stty size; tty\n")
        terminal.expect("31 97", within=PATIENCE)
        terminal.expect("/dev/pts/", within=PATIENCE)
        terminal.send("exit\n")
        assert terminal.wait(within=PATIENCE) == 0


def test_exec_of_a_program_that_is_not_there(crictl: Crictl, running: str) -> None:
    done = crictl.exec(running, "/no/such/program")
    assert done.code != 0
    assert "/no/such/program" in done.err


# --- attach and logs -------------------------------------------------------------------------------------------------


def test_attach_sees_output_and_gives_input(crictl: Crictl, shared: Pods, pod_id: str, removed: list[str]) -> None:
    script = "while read -r line; do echo got $line; done; echo end"
    container_id = shared.start(pod_id, "sh", "-c", script, name="attach", stdin=True, stdin_once=True)
    removed.append(container_id)
    client = crictl.spawn("attach", "--stdin", container_id)
    try:
        assert client.stdin is not None and client.stdout is not None
        for word in (b"one", b"two"):
            client.stdin.write(word + b"\n")
            client.stdin.flush()
            assert client.stdout.readline() == b"got " + word + b"\n"
    finally:
        process.finish(client)
    # stdin_once: when the one who attached has gone, the container's stdin ends.
    assert crictl.await_exit(container_id) == 0
    assert crictl.logs(container_id).splitlines() == ["got one", "got two", "end"]


def test_attach_to_a_terminal(crictl: Crictl, shared: Pods, pod_id: str, removed: list[str]) -> None:
    container_id = shared.start(pod_id, "sh", name="tty", stdin=True, tty=True)
    removed.append(container_id)
    with Terminal(crictl.containerd.host, crictl.argv("attach", "--stdin", "--tty", container_id)) as terminal:
        terminal.send("echo $((40 + 2))\n")
        terminal.expect(r"\s42\s", within=PATIENCE)
        terminal.send("exit 5\n")
        terminal.wait(within=PATIENCE)
    assert crictl.await_exit(container_id) == 5


def test_logs_are_the_kubelets_format_and_complete(
    crictl: Crictl, shared: Pods, pod_id: str, removed: list[str]
) -> None:
    script = "i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done; echo problem >&2; printf unfinished"
    container_id = shared.start(pod_id, "sh", "-c", script, name="logs")
    removed.append(container_id)
    assert crictl.await_exit(container_id) == 0
    lines = (shared.directory / "logs.log").read_text().splitlines()
    out = [line.split(" ", 3) for line in lines if " stdout " in line]
    assert [words[3] for words in out] == [*(f"line {n}" for n in range(2000)), "unfinished"]
    assert out[-1][2] == "P", "a line without its end is marked so"
    assert [line.split(" ", 3)[3] for line in lines if " stderr " in line] == ["problem"]


# --- statistics, restarts, ends --------------------------------------------------------------------------------------


def test_statistics_are_of_the_container(crictl: Crictl, shared: Pods, pod_id: str, removed: list[str]) -> None:
    script = "dd if=/dev/zero of=/dev/shm/x bs=1M count=20 2>/dev/null; while :; do :; done"
    container_id = shared.start(pod_id, "sh", "-c", script, name="busy")
    removed.append(container_id)

    def used() -> int:
        return int(crictl.stats(container_id)["cpu"].get("usageCoreNanoSeconds", {}).get("value", 0))

    eventually("some processor time", lambda: used() > 100_000_000, within=PATIENCE)

    def memory() -> int:
        return int(crictl.stats(container_id)["memory"]["workingSetBytes"]["value"])

    eventually("the memory it wrote to", lambda: memory() > 15 << 20, within=PATIENCE)
    before = used()
    eventually("more processor time", lambda: used() > before, within=PATIENCE)


def test_a_container_is_started_again_as_the_kubelet_does(
    crictl: Crictl, shared: Pods, pod_id: str, removed: list[str]
) -> None:
    """A restart is a new container of the same name with the next attempt; the old one is kept for its logs."""
    for attempt in range(3):
        metadata = {"name": "crash", "attempt": attempt}
        container_id = shared.start(pod_id, "sh", "-c", "exit 9", name="crash", metadata=metadata)
        removed.append(container_id)
        assert crictl.await_exit(container_id) == 9


@pytest.mark.parametrize(
    ("script", "grace", "code"),
    [
        ("trap 'exit 0' TERM; while :; do sleep 86400 & wait; done", 30, 0),
        ("trap '' TERM; while :; do sleep 86400 & wait; done", 2, 137),
        ("trap 'exit 0' TERM; while :; do sleep 86400 & wait; done", 0, 137),
    ],
    ids=["heeds", "ignores", "none given"],
)
def test_grace_periods(
    crictl: Crictl, shared: Pods, pod_id: str, removed: list[str], script: str, grace: int, code: int
) -> None:
    name = f"grace{grace}"
    container_id = shared.start(pod_id, "sh", "-c", f"echo up; {script}", name=name)
    removed.append(container_id)
    log = shared.directory / f"{name}.log"
    eventually("the trap", lambda: log.exists() and "up" in log.read_text(), within=PATIENCE)
    begin = time.monotonic()
    crictl("stop", "--timeout", str(grace), container_id).ok()
    assert int(crictl.inspect(container_id)["status"]["exitCode"]) == code
    assert time.monotonic() - begin < (grace if code == 137 else 0) + 8 * SCALE


def test_out_of_memory_has_its_reason(crictl: Crictl, shared: Pods, pod_id: str, removed: list[str]) -> None:
    script = "tail /dev/zero"
    limit = {"resources": {"memory_limit_in_bytes": 32 << 20}}
    container_id = shared.start(pod_id, "sh", "-c", script, name="oom", linux=limit)
    removed.append(container_id)
    assert crictl.await_exit(container_id) == 137
    reason = crictl.inspect(container_id)["status"]["reason"]
    assert reason == "OOMKilled"
