"""``ctr`` by hand: its sub-commands and the flags of ``ctr run``, each with what a user sees. docs/ctr.md is the same in words."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from integration.harness.ctr import PATIENCE, Ctr, Done
from integration.harness.sandbox import SANDBOX, TYPE
from integration.harness.waiting import eventually

pytestmark = pytest.mark.vm

MIB: Final = 1 << 20
#: What stands for the test's own directory in a row.
PLACE: Final = "{place}"
STATUS: Final = "grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status | tr -d '\\t'"
#: containerd's default spec has no control groups to look at.
CGROUP: Final = "--mount type=cgroup,src=cgroup,dst=/sys/fs/cgroup,options=ro"
CHOWN, NET_ADMIN = 1 << 0, 1 << 12


@pytest.fixture(scope="module")
def pod(ctr: Ctr) -> Iterator[str]:
    """Rows are containers of one pod: a machine is booted once."""
    ctr.start("by-hand", "sleep", "86400", annotations={TYPE: "sandbox", SANDBOX: "by-hand"})
    yield "by-hand"
    ctr.remove("by-hand")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("from the host\n")
    (tmp_path / "env").write_text("FROM_FILE=f\n")
    return tmp_path


@dataclass(frozen=True, slots=True)
class Row:
    """Flags of ``ctr run``, a script for the container, and a line that it must print."""

    flags: str
    script: str
    line: str


def capabilities(done: Done) -> int:
    return int(next(line for line in done.out.splitlines() if line.startswith("CapEff")).partition(":")[2], 16)


ROWS: Final = (
    Row("--env A=b", "echo $A", "b"),
    Row(f"--env-file {PLACE}/env", "echo $FROM_FILE", "f"),
    Row("--cwd /home/app", "pwd", "/home/app"),
    Row(f"--mount type=bind,src={PLACE},dst=/in,options=rbind:rw", "cat /in/file; echo x > /in/out", "from the host"),
    Row(f"--mount type=bind,src={PLACE},dst=/in,options=rbind:ro", "touch /in/x || echo refused", "refused"),
    Row(
        "--mount type=tmpfs,src=tmpfs,dst=/t,options=size=1m",
        "df -k /t | tail -n 1 | tr -s ' ' | cut -d ' ' -f 2",
        "1024",
    ),
    Row(f"--memory-limit 67108864 {CGROUP}", "cat /sys/fs/cgroup/memory.max", str(64 * MIB)),
    Row(f"--cpus 0.5 {CGROUP}", "cat /sys/fs/cgroup/cpu.max", "50000 100000"),
    Row(f"--cpu-quota 20000 --cpu-period 50000 {CGROUP}", "cat /sys/fs/cgroup/cpu.max", "20000 50000"),
    Row(f"--cpu-shares 512 {CGROUP}", "cat /sys/fs/cgroup/cpu.weight", "20"),
    Row("--read-only", "touch /x || echo refused", "refused"),
    Row("", STATUS, "NoNewPrivs:1"),
    Row("--allow-new-privs", STATUS, "NoNewPrivs:0"),
    Row("", STATUS, "Seccomp:0"),
    Row("--device /dev/fuse", "ls -l /dev/fuse | cut -c 1", "c"),
    Row("--rootfs-propagation shared", "grep ' / / ' /proc/self/mountinfo | grep -c shared", "1"),
    Row("--no-pivot", "echo up", "up"),
    Row("--net-host", "echo up", "up"),
    Row("--with-ns network:/proc/1/ns/net", "echo up", "up"),
    Row("--with-ns ipc:/proc/1/ns/ipc", "echo up", "up"),
    Row("--cgroup /some/where", "cat /proc/self/cgroup", "0::/"),
    Row("--platform linux/amd64", "uname -m", "x86_64"),
    Row("--snapshotter native", "echo up", "up"),
    Row(f"--fifo-dir {PLACE}", "echo up", "up"),
    Row("--apparmor-profile unconfined", "echo up", "up"),
)


def of_pod(ctr: Ctr, pod: str, name: str, flags: Sequence[str], *argv: str) -> Done:
    return ctr.run(name, *argv, options=flags, annotations={TYPE: "container", SANDBOX: pod})


@pytest.mark.parametrize("row", ROWS, ids=[f"{row.flags.split('=')[0] or 'default'}-{row.line}" for row in ROWS])
def test_flags_of_run(ctr: Ctr, pod: str, name: str, place: Path, row: Row) -> None:
    flags = [word.replace(PLACE, str(place)) for word in row.flags.split()]
    done = of_pod(ctr, pod, name, flags, "sh", "-c", row.script).ok()
    assert row.line in done.out.splitlines(), done
    if "rw" in row.flags:
        assert (place / "out").read_text() == "x\n"


def test_capabilities(ctr: Ctr, pod: str, name: str) -> None:
    flags = ["--cap-add", "CAP_NET_ADMIN", "--cap-drop", "CAP_CHOWN"]
    before = capabilities(of_pod(ctr, pod, name, [], "sh", "-c", STATUS).ok())
    after = capabilities(of_pod(ctr, pod, f"{name}-set", flags, "sh", "-c", STATUS).ok())
    assert (before & CHOWN, before & NET_ADMIN) == (CHOWN, 0)
    assert after == before ^ CHOWN ^ NET_ADMIN


def test_privileged_has_what_containerd_has(ctr: Ctr, pod: str, name: str) -> None:
    """Which is every capability, unless its host holds some back."""
    own = re.search(r"CapEff:\s*(\w+)", Path(f"/proc/{ctr.containerd.pid}/status").read_text())
    assert own is not None
    assert capabilities(of_pod(ctr, pod, name, ["--privileged"], "sh", "-c", STATUS).ok()) == int(own[1], 16)


@pytest.mark.parametrize(("disabled", "mode"), [("true", 0), ("false", 2)])
def test_seccomp_is_the_configurations_choice(ctr: Ctr, name: str, place: Path, disabled: str, mode: int) -> None:
    """Kata's default is to leave it to the machine's own border."""
    config = place / "configuration.toml"
    config.write_text(f"[runtime]\ndisable_guest_seccomp = {disabled}\n")
    done = ctr.run(name, "sh", "-c", STATUS, options=["--seccomp"], config=config).ok()
    assert f"Seccomp:{mode}" in done.out.splitlines()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--uidmap 0:100000:1000 --gidmap 0:100000:1000", "id mappings"),
        ("--mount type=bind,src=/no/such,dst=/in,options=rbind", "/no/such"),
        ("--runc-systemd-cgroup", "only supported for"),
    ],
    ids=["user-namespace", "mount", "of-runc"],
)
def test_what_is_refused_says_why(ctr: Ctr, pod: str, name: str, flags: str, said: str) -> None:
    done = of_pod(ctr, pod, name, flags.split(), "true")
    ctr.remove(name)
    assert done.code != 0
    assert said in done.err


# --- sub-commands ----------------------------------------------------------------------------------------------------


def test_a_container_is_made_started_looked_at_and_removed(ctr: Ctr, name: str, place: Path) -> None:
    """create, label, info, ls; task start, ls, ps, exec, metrics, kill, delete; delete."""
    pid_file = place / "pid"
    ctr("container", "create", "--runtime", ctr.runtime, "--label", "a=b", ctr.image, name, "sleep", "86400").ok()
    try:
        ctr("container", "label", name, "c=d").ok()
        info = json.loads(ctr("container", "info", name).ok().out)
        assert (info["Labels"]["a"], info["Labels"]["c"]) == ("b", "d")
        assert info["Runtime"]["Name"] == ctr.runtime
        assert name in ctr.containers()
        ctr("task", "start", "--detach", "--null-io", "--pid-file", pid_file, name).ok()
        pid, status = ctr.tasks()[name]
        assert (status, pid_file.read_text()) == ("RUNNING", str(pid))
        assert str(pid) in ctr("task", "ps", name).ok().out
        assert ctr("container", "delete", name).code != 0, "it runs"
        _look_inside(ctr, name)
        ctr("task", "kill", "--signal", "SIGKILL", name).ok()
        eventually("its end", lambda: ctr.tasks()[name][1] == "STOPPED", within=PATIENCE)
        assert "exit code 137" in ctr("task", "rm", name).ok().err
    finally:
        ctr.remove(name)
    assert name not in ctr.containers()


def _look_inside(ctr: Ctr, name: str) -> None:
    words = ("--cwd", "/home/app", "--user", "1000:1000", name, "sh", "-c", "pwd; id -u")
    assert ctr("task", "exec", "--exec-id", "e", *words).ok().out.split() == ["/home/app", "1000"]
    assert "memory" in ctr("task", "metrics", name).ok().out
    metrics = json.loads(ctr("task", "metrics", "--format", "json", name).ok().out)
    assert metrics["memory"] and metrics["cpu"] and metrics["pids"]


def test_pause_and_resume(ctr: Ctr, pod: str) -> None:
    ctr("task", "pause", pod).ok()
    assert ctr.tasks()[pod][1] == "PAUSED"
    assert "paused" in ctr.exec(pod, "in-vain", "true").err
    ctr("task", "resume", pod).ok()
    assert ctr.tasks()[pod][1] == "RUNNING"
    assert ctr.exec(pod, "again", "echo", "up").ok().out == "up"


@pytest.mark.parametrize("words", [("task", "checkpoint"), ("container", "checkpoint", "--task")], ids=" ".join)
def test_a_checkpoint_is_refused_and_harms_nothing(ctr: Ctr, pod: str, words: Sequence[str]) -> None:
    last = ["registry.invalid/checkpoint:x"] if words[0] == "container" else []
    done = ctr(*words, pod, *last)
    assert done.code != 0
    assert "cannot be checkpointed" in done.err
    assert ctr.tasks()[pod][1] == "RUNNING"


def test_an_exec_without_a_client(ctr: Ctr, pod: str, name: str, place: Path) -> None:
    """--detach leaves it to be seen, killed and deleted by its id; and its FIFOs where ctr made them."""
    ctr.exec(pod, name, "sleep", "86400", options=["--detach", "--fifo-dir", str(place)]).ok()
    assert f"ExecID:{name}" in ctr("task", "ps", pod).ok().out
    ctr.kill(pod, "SIGTERM", "--exec-id", name).ok()
    eventually("its end", lambda: ctr.delete_task(pod, "--exec-id", name).code != 1, within=PATIENCE)
    assert name not in ctr("task", "ps", pod).ok().out


def test_everyone_is_killed_and_a_running_task_is_removed_by_force(ctr: Ctr, pod: str, name: str) -> None:
    notes = {TYPE: "container", SANDBOX: pod}
    for number, end in enumerate((("kill", "--all", "--signal", "SIGKILL"), ("rm", "--force"))):
        container = f"{name}-{number}"
        ctr.start(container, "sleep", "86400", annotations=notes)
        assert ctr("task", "rm", container).code != 0, "it runs"
        ctr("task", *end, container).ok()
        eventually("its end", lambda c=container: ctr.tasks().get(c, (0, "STOPPED"))[1] == "STOPPED", within=PATIENCE)  # type: ignore[misc]
        ctr.remove(container)


@pytest.mark.parametrize(
    "words", [("kill",), ("pause",), ("resume",), ("ps",), ("metrics",), ("attach",), ("rm",)], ids=" ".join
)
def test_a_task_that_is_not_there(ctr: Ctr, words: Sequence[str]) -> None:
    done = ctr("task", *words, "nobody")
    assert done.code != 0
    assert "not found" in done.err
